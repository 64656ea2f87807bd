"""Media in and out under one name; the work is done in ``ltx_media``."""

from ltx_media.audio import read_audio, stereo_track, write_wav
from ltx_media.contact_sheet import write_contact_sheet
from ltx_media.containers import RECIPE_KEY, read_recipe
from ltx_media.exr import exr_frames, read_exr, write_exr
from ltx_media.images import decode_image, load_thumbnail, recompress_image, write_png
from ltx_media.pixels import center_crop_fit, reflect_pad_fit
from ltx_media.preview import write_png_sequence, write_preview
from ltx_media.source import Wanted, load_image, load_mask_video, load_video, normalize_source
from ltx_media.video import VideoInfo, probe_video, read_frames, read_frames_at, read_frames_between
from ltx_media.writer import HLG, SDR, VideoEncoding, exact_rate, write_video

__all__ = [
    "HLG",
    "RECIPE_KEY",
    "SDR",
    "VideoEncoding",
    "VideoInfo",
    "Wanted",
    "center_crop_fit",
    "decode_image",
    "exact_rate",
    "exr_frames",
    "load_image",
    "load_mask_video",
    "load_thumbnail",
    "load_video",
    "normalize_source",
    "probe_video",
    "read_audio",
    "read_exr",
    "read_frames",
    "read_frames_at",
    "read_frames_between",
    "read_recipe",
    "recompress_image",
    "reflect_pad_fit",
    "stereo_track",
    "write_contact_sheet",
    "write_exr",
    "write_png",
    "write_png_sequence",
    "write_preview",
    "write_video",
    "write_wav",
]
