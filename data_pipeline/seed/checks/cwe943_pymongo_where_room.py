from doubles import module


class Cursor(list):
    def limit(self, count):
        return Cursor(self[:count])


class Sensors:
    """A collection; of JavaScript, `$where` understands what can be read as Python after a few replacements."""

    rows = [
        {"_id": 1, "room": "B12", "noise": 80},
        {"_id": 2, "room": "B12", "noise": 20},
        {"_id": 3, "room": "O'Hara lab", "noise": 90},
    ]

    def find(self, query, projection):
        return Cursor({"_id": row["_id"]} for row in self.rows if self.matches(row, query))

    def matches(self, row, query):
        if "$where" in query:
            script = query["$where"].replace("this.room", "room").replace("this.noise", "noise")
            return eval(script.replace("&&", " and ").replace("||", " or "), {}, dict(row))
        tests = {"$eq": lambda have, want: have == want, "$gte": lambda have, want: have >= want}
        return all(tests[name](row[field], want) for field, test in query.items() for name, want in test.items())


class Database:
    sensors = Sensors()


module("pymongo.database", Database=Database)


def functional(m):
    assert m.loud_sensors(Database(), "B12", 50) == ["1"]
    assert m.loud_sensors(Database(), "B12", 10) == ["1", "2"]
    assert m.loud_sensors(Database(), "C1", 10) == []


def exploit(m):
    assert m.loud_sensors(Database(), "' || 1 == 1 || '", 50) == []
