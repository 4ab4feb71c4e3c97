"""Training: state, step, loop, phases, checkpoints, metric writers, figures."""
from jaxlab.train.loop import Hook, fit
from jaxlab.train.step import TrainState, task_gradient, train_step

__all__ = ['Hook', 'TrainState', 'fit', 'task_gradient', 'train_step']
