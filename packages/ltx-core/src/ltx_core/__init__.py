"""LTX-2 core: networks, diffusion maths, conditioning, checkpoint loading and the denoising loop.

What is exported here is imported when it is used::

    from ltx_core import Checkpoint

    transformer = Checkpoint.open("ltx-2.3-22b-dev.safetensors").build("transformer")
"""

from ltx_core.exports import lazily

__version__ = "0.1.0"  # of every package of the workspace
__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "AudioDecoder": "model.audio_vae.audio_vae",
        "AudioEncoder": "model.audio_vae.audio_vae",
        "AudioLatentShape": "types",
        "AudioLatentTools": "conditioning.tools",
        "AudioPatchifier": "components.patchifiers",
        "BetaScheduler": "components.schedulers",
        "CFGGuider": "components.guiders",
        "Checkpoint": "loader.checkpoint",
        "EulerDiffusionStep": "components.diffusion_steps",
        "GaussianNoiser": "components.noisers",
        "GuidedDenoiser": "sampling.denoisers",
        "HeunDiffusionStep": "components.diffusion_steps",
        "LTX2Scheduler": "components.schedulers",
        "LTXModel": "model.transformer.model",
        "LatentState": "types",
        "LatentUpsampler": "model.upsampler.model",
        "LinearQuadraticScheduler": "components.schedulers",
        "Lora": "loader.lora",
        "LtxAPGGuider": "components.guiders",
        "LtxError": "errors",
        "Modality": "model.transformer.modality",
        "MultiModalGuider": "components.guiders",
        "MultiModalGuiderParams": "components.guiders",
        "STGGuider": "components.guiders",
        "VideoConditionByKeyframeIndex": "conditioning.types.keyframe_cond",
        "VideoConditionByLatentIndex": "conditioning.types.latent_cond",
        "VideoDecoder": "model.video_vae.video_vae",
        "VideoEncoder": "model.video_vae.video_vae",
        "VideoLatentPatchifier": "components.patchifiers",
        "VideoLatentShape": "types",
        "VideoLatentTools": "conditioning.tools",
        "VideoPixelShape": "types",
        "Vocoder": "model.audio_vae.vocoder",
        "X0Model": "model.transformer.model",
        "decode_audio": "model.audio_vae.audio_vae",
        "denoise": "sampling.loop",
        "encode_audio": "model.audio_vae.audio_vae",
        "load_text_encoder": "text_encoders.gemma.encoder",
    },
)
