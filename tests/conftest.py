"""Every test sees four CPU devices and shares one persistent compilation cache."""
import os
import tempfile

DEVICES = '--xla_force_host_platform_device_count=4'
if DEVICES not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {DEVICES}'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR',
                      os.path.join(tempfile.gettempdir(), 'jaxlab-tests', 'compilations'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
os.environ.setdefault('TFDS_DATA_DIR', os.path.join(tempfile.gettempdir(), 'jaxlab-tests', 'data'))
