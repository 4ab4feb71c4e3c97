"""jaxlab: nineteen published systems in one JAX codebase."""
import pathlib

import setuptools

PRIVACY = ['dp-accounting>=0.5']
TEXT = ['safetensors>=0.5', 'tokenizers>=0.21', 'jinja2>=3.1']
SECURE = ['cryptography>=42', 'msgpack>=1']
# The lower bounds of two are pre-releases: the first that work with web3 8.
AGATHA = ['web3>=8.0.0', 'eth-tester>=0.14.0b1', 'py-evm>=0.12.1b1', 'pycryptodome>=3.20']
VISION = ['pillow>=11', 'trimesh>=4']
ROBOT = ['pyarrow>=17', 'av>=13', 'imageio>=2.36']
ANN = ['faiss-cpu>=1.9']
API = ['httpx>=0.27']
BIPIA = ['nltk>=3.9', 'rouge-score>=0.1.2', 'rapidfuzz>=3', 'langdetect>=1.0.9']
TEST = [
    *PRIVACY, *TEXT, *SECURE, *AGATHA, *VISION, *ROBOT, *ANN, *API, *BIPIA, 'pytest>=8',
    'pytest-xdist', 'pytest-cov', 'hypothesis', 'starlark-pyo3'
]

setuptools.setup(
    name='jaxlab',
    version='0.1.0',
    description='Nineteen published systems in one pure-functional JAX codebase',
    long_description=pathlib.Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    package_dir={'': '.'},  # an editable install then sees tests/ and configs/ as well
    packages=setuptools.find_packages(include=['jaxlab', 'jaxlab.*']),
    package_data={'jaxlab.systems': ['*/README.md', 'agatha/contract/*']},
    install_requires=[
        'jax>=0.10',
        'flax>=0.12',
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12',
        'tensorflow-datasets>=4.9.10',
        'array_record>=0.8',
        'grain>=0.2.18',
        'chex>=0.1.90',
        'absl-py>=2.1',
        'ml_collections>=1.0',
        'numpy>=2.0',
        'scipy>=1.13',
        'scikit-learn>=1.5',
        'tqdm>=4.66',
        'matplotlib>=3.9',
        'tensorboard>=2.18',
    ],
    extras_require={
        'privacy': PRIVACY, 'text': TEXT, 'secure': SECURE, 'agatha': AGATHA, 'vision': VISION,
        'robot': ROBOT, 'ann': ANN, 'api': API, 'bipia': BIPIA, 'sim': ['metaworld>=3'],
        'test': TEST},
)
