"""Photos on disk: sorted listing, decoding to RGB, masks, EXIF and resizing."""

from sfm_lightglue.images.camera_ranges import camera_ranges as camera_ranges
from sfm_lightglue.images.decoding import MIN_SIDE as MIN_SIDE
from sfm_lightglue.images.decoding import UnreadableImage as UnreadableImage
from sfm_lightglue.images.decoding import exif_orientation as exif_orientation
from sfm_lightglue.images.decoding import opaque_parts as opaque_parts
from sfm_lightglue.images.decoding import to_rgb as to_rgb
from sfm_lightglue.images.headers import PhotoHeader as PhotoHeader
from sfm_lightglue.images.headers import read_header as read_header
from sfm_lightglue.images.headers import read_orientation as read_orientation
from sfm_lightglue.images.headers import read_pose_tags as read_pose_tags
from sfm_lightglue.images.headers import read_position as read_position
from sfm_lightglue.images.headers import read_time as read_time
from sfm_lightglue.images.listing import EXTENSIONS as EXTENSIONS
from sfm_lightglue.images.listing import HEIC as HEIC
from sfm_lightglue.images.listing import find_pictures as find_pictures
from sfm_lightglue.images.listing import list_images as list_images
from sfm_lightglue.images.loading import load_image as load_image
from sfm_lightglue.images.masks import MaskFiles as MaskFiles
from sfm_lightglue.images.masks import check_masks as check_masks
from sfm_lightglue.images.masks import find_masks as find_masks
from sfm_lightglue.images.names import similar_name as similar_name
from sfm_lightglue.images.names import warn_of_spaces as warn_of_spaces
from sfm_lightglue.images.names import warn_once as warn_once
from sfm_lightglue.images.resizing import resize_longest as resize_longest
from sfm_lightglue.images.resizing import to_grey as to_grey
from sfm_lightglue.images.value_ranges import Range as Range
