"""A clip that begins with a picture, drawn here, and may drift away from it."""

from PIL import Image, ImageDraw

from ltx_pipelines import TI2VidOneStagePipeline

picture = Image.new("RGB", (256, 256), "navy")
ImageDraw.Draw(picture).ellipse((96, 64, 160, 128), fill="red")

pipeline = TI2VidOneStagePipeline.from_pretrained()
clip = pipeline("a red ball falls on a blue background", images=[(picture, 0, 0.9)], seed=3)
clip.save("falling.mp4")
print(clip)
