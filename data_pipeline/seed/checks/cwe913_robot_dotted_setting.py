class Arm:
    speed = 5


class Robot:
    def __init__(self):
        self.name = "R1"
        self.arm = Arm()


def functional(m):
    robot = Robot()
    assert m.change_setting(robot, "arm.speed", "7") == 5
    assert (robot.arm.speed, Arm.speed) == (7, 5)
    assert m.change_setting(robot, "name", "R2") == "R1" and robot.name == "R2"
    for path, text in (("arm", "x"), ("arm.speed", "fast"), ("leg.speed", "1"), ("arm.", "1")):
        try:
            m.change_setting(robot, path, text)
        except (AttributeError, ValueError):
            continue
        raise AssertionError(path)


def exploit(m):
    for path, text in (("arm.__class__.speed", "99"), ("__class__.__name__", "Owned"), ("__module__", "x")):
        try:
            m.change_setting(Robot(), path, text)
        except AttributeError:
            pass
    assert (Arm.speed, Robot.__name__, Robot().__module__) == (5, "Robot", __name__)
