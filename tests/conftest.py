"""Every test sees four CPU devices and shares one persistent compilation cache."""
import os
import pathlib
import tempfile

# Compiling takes most of the time of small tests: level 0 saves a third of it.
FLAGS = '--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0'
if FLAGS not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {FLAGS}'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR',
                      os.path.join(tempfile.gettempdir(), 'jaxlab-tests', 'compilations'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
os.environ.setdefault('TFDS_DATA_DIR', os.path.join(tempfile.gettempdir(), 'jaxlab-tests', 'data'))

import jax  # noqa: E402  (the flags above are read when it starts)
import pytest  # noqa: E402

LONGEST = ('composition', 'faults', 'simulation', 'round', 'golden', 'launch', 'loop',
           'multiprocess')
ALLOWED_SKIPS = pathlib.Path(__file__).with_name('allowed_skips.txt')


def pytest_collection_modifyitems(items):
  """Puts the long test files first, so that no worker is left alone with one at the end."""
  items.sort(key=lambda item: item.path.stem.removesuffix('_test') not in LONGEST)


def pytest_sessionfinish(session):
  """Under CI a test may only be skipped if allowed_skips.txt names it."""
  reporter = session.config.pluginmanager.get_plugin('terminalreporter')
  if reporter is None or not os.environ.get('CI'):  # a worker of pytest-xdist has no reporter
    return
  allowed = {line.split('#')[0].strip() for line in ALLOWED_SKIPS.read_text().splitlines()}
  skipped = {report.nodeid for report in reporter.stats.get('skipped', [])} - allowed
  if skipped:
    reporter.write_line(f'skipped, but not in {ALLOWED_SKIPS.name}: {sorted(skipped)}', red=True)
    session.exitstatus = 1


@pytest.fixture(scope='module', autouse=True)
def _forget_programs():
  """Frees the programs of a test file; another that wants them finds them in the cache."""
  yield
  jax.clear_caches()
