"""What central differential privacy costs, by the accountant of the dp-accounting package."""
from jaxlab import config as config_lib


def epsilon(*, noise_multiplier, sampling_rate, rounds, delta):
  """Epsilon of (epsilon, delta)-differential privacy for `aggregators.clipped_gaussian`.

  Renyi accounting of the Poisson-subsampled Gaussian mechanism, one step a round; the unit of
  privacy is a client. Sampling without replacement is taken for Poisson sampling, as is usual.

  Args:
    noise_multiplier: that of the aggregator, > 0.
    sampling_rate: cohort size / number of clients, in (0, 1].
    rounds: number of rounds, >= 1.
    delta: in (0, 1).

  Raises:
    ConfigError: an impossible value, or the extra [privacy] is not installed.
  """
  config_lib.require(noise_multiplier > 0, 'noise_multiplier', 'more than 0', noise_multiplier)
  config_lib.require(0 < sampling_rate <= 1, 'sampling_rate', 'a number in (0, 1]', sampling_rate)
  config_lib.require(rounds >= 1, 'rounds', 'at least 1', rounds)
  config_lib.require(0 < delta < 1, 'delta', 'a number in (0, 1)', delta)
  try:
    import dp_accounting  # pylint: disable=g-import-not-at-top
    from dp_accounting import rdp  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise config_lib.ConfigError("the accountant needs: pip install 'jaxlab[privacy]'") from error
  accountant = rdp.RdpAccountant()
  gaussian = dp_accounting.GaussianDpEvent(noise_multiplier)
  accountant.compose(dp_accounting.PoissonSampledDpEvent(sampling_rate, gaussian), rounds)
  return float(accountant.get_epsilon(delta))
