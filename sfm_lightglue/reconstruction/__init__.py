"""The stage reconstruct: COLMAP's mappers, and the models that they make."""

from sfm_lightglue.reconstruction.mappers import MAPPERS as MAPPERS
from sfm_lightglue.reconstruction.mappers import ReconstructionOptions as ReconstructionOptions
from sfm_lightglue.reconstruction.models import ModelReport as ModelReport
from sfm_lightglue.reconstruction.models import ReconstructionReport as ReconstructionReport
from sfm_lightglue.reconstruction.stage import reconstruct as reconstruct
