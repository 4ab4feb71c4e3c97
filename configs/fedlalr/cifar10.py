"""FedLALR (arXiv 2309.09719) on CIFAR-10 with ResNet-18-GN, clients with Dirichlet(0.6) labels.

  python -m launch.federate --config=configs/fedlalr/cifar10.py --workdir=/tmp/jaxlab/fedlalr-cifar
  python -m launch.federate --config=configs/fedlalr/cifar10.py:demo \
      --workdir=/tmp/jaxlab/fedlalr-cifar-demo

The first command wants cifar-10-python.tar.gz (https://www.cs.toronto.edu/~kriz/cifar.html) in the
folder downloads/manual of the data sets, and an accelerator; no run of it has been made here. The
rates, alpha 2e-3, b1 .9, b2 .995 and eps 1e-8, are the paper's. CHOICE, for want of the paper's
own, are: ResNet-18-GN, 100 clients of which 10 take part, 1 local epoch of batches of 50, Dirichlet
.6, 500 rounds, crops and mirror images, no weight decay.

Variant 'demo' trains a small ResNet-GN on synthetic images in CIFAR-10's format, with 10 clients
who all take part, batches of 20 and an alpha of its own: 10 rounds in 40 seconds on two cores, test
accuracy about .8. Variant 'cifar100' takes CIFAR-100.
"""
import ml_collections


def get_config(variant='cifar10'):
  """Returns the experiment; `variant` is one of 'cifar10', 'cifar100', 'demo'."""
  if variant not in ('cifar10', 'cifar100', 'demo'):
    raise ValueError(f"variant: expected 'cifar10', 'cifar100' or 'demo', got {variant!r}")
  demo = variant == 'demo'
  config = ml_collections.ConfigDict()
  config.task = 'classification'
  config.seed = 0
  config.data = {'name': 'cifar_demo' if demo else variant, 'train': 'train', 'test': 'test'}
  config.augment = {'padding': 4, 'flip': True}
  config.model = {'name': 'resnet_gn', 'stage_sizes': (1,) if demo else (2, 2, 2, 2),
                  'width': 8 if demo else 64, 'groups': 4 if demo else 32}
  config.federated = {
      'num_clients': 10 if demo else 100,
      'cohort_size': 10,
      'rounds': 10 if demo else 500,
      'partition': {'name': 'dirichlet_by_class', 'alpha': 0.6, 'min_size': 20},
      'algorithm': {
          'name': 'fedlalr', 'vhat_agg': 'mean', 'sync_momentum': True, 'weighting': 'uniform'
      },
      'client_optimizer': {
          'name': 'fedlalr', 'learning_rate': 0.01 if demo else 0.002, 'b1': 0.9, 'b2': 0.995,
          'eps': 1e-8
      },
      'aggregator': {'name': 'mean'},
      'batch_size': 20 if demo else 50,
      'epochs': 1,
      'clients_per_vmap': 0,
      'rounds_per_call': 1,
      'log_every': 1,
      'eval_every': 5,
      'save_every': 5 if demo else 50,
  }
  return config
