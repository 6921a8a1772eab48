from types import SimpleNamespace

from doubles import module

DELETED = []


class PermissionDenied(Exception):
    pass


def permission_required(permission, raise_exception=False):
    def decorate(view):
        def checked(request, *args, **kwargs):
            if permission not in request.user.permissions:
                raise PermissionDenied
            return view(request, *args, **kwargs)

        return checked

    return decorate


def login_required(view):
    def checked(request, *args, **kwargs):
        return view(request, *args, **kwargs) if request.user.is_authenticated else "/login"

    return checked


def get_object_or_404(model, pk):
    return SimpleNamespace(delete=lambda: DELETED.append((model, pk)))


module("django.contrib.auth.decorators", permission_required=permission_required, login_required=login_required)
module("django.shortcuts", get_object_or_404=get_object_or_404, redirect=lambda name: name)
module("django.views.decorators.http", require_POST=lambda view: view)
module("pharmacy.models", Batch="Batch")


def request(*permissions):
    return SimpleNamespace(method="POST", user=SimpleNamespace(is_authenticated=True, permissions=permissions))


def functional(m):
    assert m.discard_batch(request("pharmacy.delete_batch"), 4) == "pharmacy:stock"
    assert DELETED == [("Batch", 4)]


def exploit(m):
    try:
        m.discard_batch(request("pharmacy.view_batch"), 4)
    except PermissionDenied:
        pass
    assert DELETED == []
