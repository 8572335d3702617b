from .analysis.compare import compare
from .analysis.hub import push_to_hub
from .analysis.reading import Reading, probe
from .embeddings.embed import embed
from .embeddings.maps import AllButTheTop, SpectralMap, Whitening
from .evaluation.predict import Predictions, predict
from .models.export import export_hf
from .models.hf import load_classifier, load_encoder
from .models.slot import SVTLayer
from .models.svt_config import SVTConfig
from .remedies.attention import GFSA, AttnScale, LaplacianHeads, NeuTRENO
from .remedies.base import AttentionMapOperation, LossTerm, ValueOperation
from .remedies.losses import CosReg, GlobalOrthogonalRegularization, IStar, SpectrumArea
from .remedies.tokens import ContraNorm, DeEscalation, FeatScale
from .remedies.whitening import TokenAllButTheTop, TokenWhitening
from .run.config import TrainConfig
from .run.task_model import TaskModel
from .spectral import measures
from .spectral.base import SpectralFunction, TokenOperation, static_field
from .spectral.functions import Average, Identity, Linear, LogShift, SoftDecay, SoftExponential
from .spectral.graph_filter import Polynomial
from .spectral.registry import get_function, register_function
from .spectral.transform import svt, svt_and_failures
from .training.callbacks import Callback
from .training.train import train

__version__: str

__all__ = [
    "GFSA",
    "AllButTheTop",
    "AttentionMapOperation",
    "AttnScale",
    "Average",
    "Callback",
    "ContraNorm",
    "CosReg",
    "DeEscalation",
    "FeatScale",
    "GlobalOrthogonalRegularization",
    "IStar",
    "Identity",
    "LaplacianHeads",
    "Linear",
    "LogShift",
    "LossTerm",
    "NeuTRENO",
    "Polynomial",
    "Predictions",
    "Reading",
    "SVTConfig",
    "SVTLayer",
    "SoftDecay",
    "SoftExponential",
    "SpectralFunction",
    "SpectralMap",
    "SpectrumArea",
    "TaskModel",
    "TokenAllButTheTop",
    "TokenOperation",
    "TokenWhitening",
    "TrainConfig",
    "ValueOperation",
    "Whitening",
    "compare",
    "embed",
    "export_hf",
    "get_function",
    "load_classifier",
    "load_encoder",
    "measures",
    "predict",
    "probe",
    "push_to_hub",
    "register_function",
    "static_field",
    "svt",
    "svt_and_failures",
    "train",
]
