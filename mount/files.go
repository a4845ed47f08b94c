package mount

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Nodes that are always there. Those of the files of rw follow; their numbers are never used again.
const (
	rootNode uint64 = fuse.FUSE_ROOT_ID + iota
	imageNode
	rwNode
	firstNode
)

const (
	nameBytes  = 255  // of a file name, at most
	blockBytes = 4096 // what loop devices discard in
	statBytes  = 512  // what stat counts blocks in
	dirMode    = unix.S_IFDIR | 0o700
	imageMode  = unix.S_IFREG | 0o400
	rwMode     = unix.S_IFREG | 0o600

	// validity is how many seconds the kernel may keep what never changes: for ever. It then need not ask a server that may hang, which
	// it does for what it knows of loop devices too.
	validity = 1 << 40

	// opened has all data of files pass by the page cache, where it would be a second time, and writers not wait for each other.
	opened = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES | fuse.FOPEN_NOFLUSH
)

// file is one file that is served.
type file struct {
	node   uint64
	name   string // in its directory
	device Device // a WritableDevice if in rw

	use  sync.RWMutex // held for reading while device is in use
	gone bool         // guarded by use
}

// path is how a Fault names the file.
func (f *file) path() string {
	if f.node == imageNode {
		return f.name
	}
	return "rw/" + f.name
}

// files is the served tree, in the shape that the library calls. What is not implemented is ENOSYS, upon which the kernel does not ask
// again.
type files struct {
	fuse.RawFileSystem
	onError func(Fault)

	mu     sync.RWMutex // guards what follows; not held while waiting for file.use
	byNode map[uint64]*file
	byName map[string]*file // of rw
	next   uint64           // node
}

func newFiles(image Device, onError func(Fault)) *files {
	return &files{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		onError:       onError,
		byNode:        map[uint64]*file{imageNode: {node: imageNode, name: "image", device: image}},
		byName:        map[string]*file{},
		next:          firstNode,
	}
}

func (f *files) add(name string, d WritableDevice) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byName[name] != nil {
		return false
	}
	added := &file{node: f.next, name: name, device: d}
	f.next++
	f.byNode[added.node], f.byName[name] = added, added
	return true
}

func (f *files) remove(name string) bool {
	f.mu.Lock()
	removed := f.byName[name]
	if removed != nil {
		delete(f.byName, name)
		delete(f.byNode, removed.node)
	}
	f.mu.Unlock()
	if removed == nil {
		return false
	}
	removed.use.Lock()
	defer removed.use.Unlock()
	removed.gone = true
	return true
}

// with runs do with a file that is not removed before it ends, nor ever if do finds no file, which is ESTALE.
func (f *files) with(node uint64, do func(*file) fuse.Status) fuse.Status {
	f.mu.RLock()
	found := f.byNode[node]
	f.mu.RUnlock()
	if found == nil {
		return fuse.Status(unix.ESTALE)
	}
	found.use.RLock()
	defer found.use.RUnlock()
	if found.gone {
		return fuse.Status(unix.ESTALE)
	}
	return do(found)
}

// writing runs do with a file of rw and a context that ends when nobody waits for the request any more.
func (f *files) writing(node uint64, cancel <-chan struct{}, do func(context.Context, *file, WritableDevice) fuse.Status) fuse.Status {
	return f.with(node, func(file *file) fuse.Status {
		if node == imageNode {
			return fuse.EROFS
		}
		return do(&fuse.Context{Cancel: cancel}, file, file.device.(WritableDevice))
	})
}

// status turns a device's answer into the kernel's number for it: the one place where that is done. What a program can act on keeps its
// meaning; all else, a deadline too, is EIO.
func (f *files) status(ctx context.Context, fault Fault) fuse.Status {
	if fault.Err == nil {
		return fuse.OK
	}
	if ctx.Err() != nil {
		return fuse.EINTR
	}
	f.onError(fault)
	for _, known := range []unix.Errno{unix.ENOSPC, unix.EROFS} {
		if errors.Is(fault.Err, known) {
			return fuse.Status(known)
		}
	}
	return fuse.EIO
}

// Lookup finds a file by its name.
func (f *files) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	f.mu.RLock()
	found := f.byName[name]
	f.mu.RUnlock()
	var node uint64
	switch {
	case in.NodeId == rootNode && name == "image":
		node = imageNode
	case in.NodeId == rootNode && name == "rw":
		node = rwNode
	case in.NodeId == rwNode && found != nil:
		node = found.node
	default:
		return fuse.ENOENT
	}
	if node == imageNode || node == rwNode { // others may be removed, and added anew
		out.EntryValid = validity
	}
	out.NodeId, out.Generation, out.AttrValid = node, 1, validity
	return f.attr(node, &out.Attr)
}

// GetAttr tells what stat wants to know.
func (f *files) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = validity
	return f.attr(in.NodeId, &out.Attr)
}

func (f *files) attr(node uint64, out *fuse.Attr) fuse.Status {
	if node == rootNode || node == rwNode {
		*out = fuse.Attr{Ino: node, Mode: dirMode, Nlink: 2, Blksize: blockBytes}
		return fuse.OK
	}
	return f.with(node, func(file *file) fuse.Status {
		mode, size := uint32(rwMode), uint64(file.device.Size())
		if node == imageNode {
			mode = imageMode
		}
		*out = fuse.Attr{Ino: node, Mode: mode, Nlink: 1, Size: size, Blocks: (size + statBytes - 1) / statBytes, Blksize: blockBytes}
		return fuse.OK
	})
}

// SetAttr changes nothing: files have the size of their device.
func (f *files) SetAttr(<-chan struct{}, *fuse.SetAttrIn, *fuse.AttrOut) fuse.Status {
	return fuse.EPERM
}

// OpenDir opens either directory.
func (f *files) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.OK }

// ReadDir lists a directory in the order of nodes; the offset after an entry is its node.
func (f *files) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	var entries []fuse.DirEntry
	if in.NodeId == rootNode {
		entries = append(entries, fuse.DirEntry{Name: "image", Mode: imageMode, Ino: imageNode}, fuse.DirEntry{Name: "rw", Mode: dirMode, Ino: rwNode})
	} else {
		f.mu.RLock()
		for name, file := range f.byName {
			entries = append(entries, fuse.DirEntry{Name: name, Mode: rwMode, Ino: file.node})
		}
		f.mu.RUnlock()
	}
	slices.SortFunc(entries, func(a, b fuse.DirEntry) int { return cmp.Compare(a.Ino, b.Ino) })
	for _, e := range entries {
		if e.Off = e.Ino; e.Off > in.Offset && !out.AddDirEntry(e) {
			break
		}
	}
	return fuse.OK
}

// StatFs gives the block size, which is the unit that loop devices discard in.
func (f *files) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: blockBytes, Frsize: blockBytes, NameLen: nameBytes}
	return fuse.OK
}

// Open opens a file, the image only for reading.
func (f *files) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.NodeId == imageNode && in.Flags&unix.O_ACCMODE != unix.O_RDONLY {
		return fuse.EROFS
	}
	out.OpenFlags = opened
	return f.with(in.NodeId, func(*file) fuse.Status { return fuse.OK })
}

// Read has the device fill the buffer that goes to the kernel.
func (f *files) Read(cancel <-chan struct{}, in *fuse.ReadIn, p []byte) (fuse.ReadResult, fuse.Status) {
	status := f.with(in.NodeId, func(file *file) fuse.Status {
		n := inside(file.device, in.Offset, uint64(len(p)))
		if p = p[:n]; n == 0 {
			return fuse.OK
		}
		ctx, off := &fuse.Context{Cancel: cancel}, int64(in.Offset)
		err := file.device.ReadAt(ctx, p, off)
		return f.status(ctx, Fault{Op: "read", File: file.path(), Off: off, N: n, Err: err})
	})
	if status != fuse.OK {
		return nil, status
	}
	return fuse.ReadResultData(p), fuse.OK
}

// inside gives how many of n bytes at off a device has.
func inside(d Device, off, n uint64) int64 {
	size := uint64(d.Size())
	return int64(min(n, size-min(off, size)))
}

// Write writes all or fails; there is no room beyond the end of a device.
func (f *files) Write(cancel <-chan struct{}, in *fuse.WriteIn, p []byte) (uint32, fuse.Status) {
	status := f.writing(in.NodeId, cancel, func(ctx context.Context, file *file, d WritableDevice) fuse.Status {
		off, n := int64(in.Offset), int64(len(p))
		if inside(d, in.Offset, uint64(n)) < n {
			return fuse.Status(unix.ENOSPC)
		}
		return f.status(ctx, Fault{Op: "write", File: file.path(), Off: off, N: n, Err: d.WriteAt(ctx, p, off)})
	})
	if status != fuse.OK {
		return 0, status
	}
	return uint32(len(p)), fuse.OK
}

// Fsync has the device make its writes last. The image has none.
func (f *files) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if in.NodeId == imageNode {
		return fuse.OK
	}
	return f.writing(in.NodeId, cancel, func(ctx context.Context, file *file, d WritableDevice) fuse.Status {
		flusher, ok := d.(Flusher)
		if !ok {
			return fuse.OK
		}
		return f.status(ctx, Fault{Op: "flush", File: file.path(), Err: flusher.Flush(ctx)})
	})
}

// Fallocate makes a range read as zeros, in both ways that the kernel asks for it.
func (f *files) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	return f.writing(in.NodeId, cancel, func(ctx context.Context, file *file, d WritableDevice) fuse.Status {
		discarder, ok := d.(Discarder)
		zeros := in.Mode == unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE || in.Mode&^unix.FALLOC_FL_KEEP_SIZE == unix.FALLOC_FL_ZERO_RANGE
		if !ok || !zeros {
			return fuse.Status(unix.EOPNOTSUPP)
		}
		off, n := int64(in.Offset), inside(d, in.Offset, in.Length)
		if n == 0 {
			return fuse.OK
		}
		return f.status(ctx, Fault{Op: "discard", File: file.path(), Off: off, N: n, Err: discarder.Discard(ctx, off, n)})
	})
}
