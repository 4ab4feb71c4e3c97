"""Optimizers as pure gradient transformations: AdaSAM, SAM, FedLALR, FedOpt's servers, and configs.

Where a second gradient is needed (`adasam`, `sam`), `update` takes `grad_fn=`, a function from
parameters to the gradient on the same batch; optimizers never reduce over devices.
"""
from jaxlab.optim.adasam import AdaSAMState, ScaleByAdaSAMState, adasam, scale_by_adasam
from jaxlab.optim.ema import EMAState, averaged, ema
from jaxlab.optim.factory import make_optimizer
from jaxlab.optim.fedlalr import FedLALRState, begin_round, fedlalr, synchronize
from jaxlab.optim.fedopt import (
    ScaleByFedAMSState,
    ScaleByFedOptState,
    scale_by_fedams,
    scale_by_fedopt,
)
from jaxlab.optim.sam import SAMState, sam, sam_gradient, sam_value_and_grad

__all__ = (
    'AdaSAMState', 'EMAState', 'FedLALRState', 'SAMState', 'ScaleByAdaSAMState',
    'ScaleByFedAMSState', 'ScaleByFedOptState', 'adasam', 'averaged', 'begin_round', 'ema',
    'fedlalr', 'make_optimizer', 'sam', 'sam_gradient', 'sam_value_and_grad', 'scale_by_adasam',
    'scale_by_fedams', 'scale_by_fedopt', 'synchronize',
)
