"""The default negative prompt: one list of defects for every program."""

DEFAULT_NEGATIVE_PROMPT = (
    "on-screen text, subtitles, captions, watermark, logo, blurred box, fade from black, fade to black, cut speech, "
    "out of focus, motion smear, overexposed, underexposed, washed out colours, low contrast, harsh contrast, grain, "
    "noise, compression blocks, flicker, banding, jagged edges, extra fingers, missing limbs, distorted hands, "
    "deformed face, asymmetric eyes, crooked teeth, warped proportions, wrong perspective, flat depth, "
    "unnatural depth of field, inconsistent lighting, misplaced shadows, plastic skin, computer-generated look, "
    "cartoon look, changing identity, drifting gaze, unfocused eyes, lips out of sync, muted sound, robotic voice, "
    "echoing voice, crackling sound, sound out of sync, added dialogue, repeated words, stuttering motion, "
    "frozen frames, abrupt jumps, badly framed subject, tilted horizon, heavy colour grading"
)
