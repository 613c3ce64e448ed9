"""Where a scan begins: paths opened without following a link, and what their file systems can do."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from dataclasses import dataclass

from pageone import procfs

__all__ = ["Place", "close", "open_places"]

#: File systems of this machine, which answer. Others (of servers, FUSE, of the kernel's own) are left alone.
LOCAL = {"bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660", "jfs", "nilfs2", "ntfs3"}
LOCAL |= {"ocfs2", "overlay", "ramfs", "reiserfs", "squashfs", "tmpfs", "udf", "vfat", "xfs", "zfs"}
#: What the native core knows of a file system: whether it shares, and when it frees.
CANNOT_SHARE, FREES_BLOCKS, FREES_EXTENTS = range(3)
_SHARING = {"xfs": FREES_BLOCKS, "ocfs2": FREES_BLOCKS, "btrfs": FREES_EXTENTS, "bcachefs": FREES_EXTENTS}

#: XFS_IOC_FSGEOMETRY_V1: a structure of 112 bytes, in which the flags stand at 92, of which this one is reflink.
_GEOMETRY, _GEOMETRY_BYTES, _FLAGS_AT, _REFLINK = 0x80705864, 112, 92, 1 << 20


@dataclass(frozen=True)
class Place:
    """A path to be scanned. ``descriptor`` is open (``O_PATH``); who opened it closes it."""

    path: str
    descriptor: int
    device: str
    kind: str
    sharing: int  #: ``CANNOT_SHARE``, ``FREES_BLOCKS`` or ``FREES_EXTENTS``
    block_size: int


def _kind_by_name(path: str) -> str | None:
    """Return what is mounted above a path, by its name alone: not one of its folders is asked."""
    path = os.path.abspath(path)
    best = ""
    kind = None
    for its, _, place, _ in procfs.mounts():
        place = place.encode().decode("unicode_escape") if "\\" in place else place
        if (path == place or path.startswith(place.rstrip("/") + "/")) and len(place) >= len(best):
            best, kind = place, its
    return kind


def _xfs_shares(descriptor: int) -> bool:
    """Whether an XFS was made with reflinks; unknown counts as yes: the kernel will say."""
    try:
        opened = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        told = bytearray(_GEOMETRY_BYTES)
        fcntl.ioctl(opened, _GEOMETRY, told)
        return bool(struct.unpack_from("=I", told, _FLAGS_AT)[0] & _REFLINK)
    except OSError:
        return True
    finally:
        os.close(opened)


def _open(path: str) -> Place | str:
    """Return a place, or why there is none."""
    kind = _kind_by_name(path)
    if kind is not None and kind not in LOCAL:
        return f"{path}: on {kind}, which is not looked into: a server or program may never answer"
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        return f"{path}: {error.strerror}"
    keep = False
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISLNK(mode):
            return f"{path}: a symbolic link; give what it leads to"
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            return f"{path}: neither a file nor a folder"
        mount = procfs.mount_of(descriptor)
        if mount is None or mount.kind not in LOCAL:
            return f"{path}: on {mount.kind if mount else 'a mount out of sight'}, which is not looked into"
        sharing = _SHARING.get(mount.kind, CANNOT_SHARE)
        if mount.kind == "xfs" and not _xfs_shares(descriptor):
            sharing = CANNOT_SHARE
        keep = True
        return Place(path, descriptor, mount.device, mount.kind, sharing, os.fstatvfs(descriptor).f_bsize)
    finally:
        if not keep:
            os.close(descriptor)


def open_places(paths: list[str]) -> tuple[list[Place], list[str]]:
    """Open paths, following no link at their ends. Returns the places, and a line for each path that is none."""
    opened = [_open(path) for path in paths]
    return [it for it in opened if isinstance(it, Place)], [it for it in opened if isinstance(it, str)]


def close(places: list[Place]) -> None:
    """Close what :func:`open_places` opened."""
    for place in places:
        os.close(place.descriptor)
