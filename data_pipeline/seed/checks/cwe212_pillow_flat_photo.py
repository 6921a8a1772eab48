from PIL import Image


def photo():
    exif = Image.Exif()
    exif[0x010F] = "PhoneMaker"
    exif.get_ifd(0x8825).update({1: "N", 2: (60.0, 10.0, 33.0)})
    Image.new("RGB", (3200, 800), "green").save("photo.jpg", exif=exif)


def functional(m):
    photo()
    assert m.publish_photo("photo.jpg", "small.jpg") == (1600, 400)
    with Image.open("small.jpg") as image:
        assert image.format == "JPEG" and image.size == (1600, 400)


def exploit(m):
    photo()
    m.publish_photo("photo.jpg", "small.jpg")
    with Image.open("small.jpg") as image:
        assert not image.getexif().get_ifd(0x8825) and not image.getexif()
