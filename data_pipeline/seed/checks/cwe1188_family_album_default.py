def functional(m):
    albums = {}
    first = m.create_album(albums, "ada", " Sea ", public=True)
    second = m.create_album(albums, "ada", "Home", public=False)
    assert first != second and m.visible_albums(albums, None) == ["Sea"]
    assert m.visible_albums(albums, "ada") == ["Home", "Sea"] and m.visible_albums(albums, "bo") == ["Sea"]


def exploit(m):
    albums = {}
    m.create_album(albums, "ada", "Children in the bath")
    assert m.visible_albums(albums, None) == [] and m.visible_albums(albums, "eve") == []
    assert m.visible_albums(albums, "ada") == ["Children in the bath"]
