import json


class Camera:
    angle = 0.0
    owner = "ada"

    def pan(self, degrees):
        self.angle += degrees
        return self.angle

    def tilt(self, degrees):
        return degrees

    def snapshot(self):
        return "frame-1"

    def factory_reset(self):
        self.owner = None


def functional(m):
    camera = Camera()
    assert json.loads(m.handle(camera, '{"action": "pan", "args": [15]}'))["result"] == 15.0
    assert json.loads(m.handle(camera, '{"action": "snapshot"}'))["result"] == "frame-1"
    try:
        m.handle(camera, '{"action": "zoom"}')
    except ValueError:
        return
    raise AssertionError("an unknown action")


def exploit(m):
    camera = Camera()
    try:
        m.handle(camera, '{"action": "factory_reset"}')
    except ValueError:
        pass
    assert camera.owner == "ada"
