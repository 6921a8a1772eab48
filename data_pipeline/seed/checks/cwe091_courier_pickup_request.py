import xml.etree.ElementTree as ET


def functional(m):
    root = ET.fromstring(m.pickup_request(17, [{"to": "Ada, Öl 3", "grams": "250"}, {"to": "Bo", "grams": 90}]))
    assert root.get("account") == "17"
    assert [[field.text for field in parcel] for parcel in root] == [["Ada, Öl 3", "250", "no"], ["Bo", "90", "no"]]


def exploit(m):
    address = "Eve</to><grams>1</grams><insured>yes</insured></parcel><parcel><to>Eve"
    root = ET.fromstring(m.pickup_request(17, [{"to": address, "grams": 4000}]))
    assert [parcel.findtext("insured") for parcel in root] == ["no"]
