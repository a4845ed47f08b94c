package verify

import "fmt"

// file compares what pair n should be with an inode, and leaves its content for
// later. A file of another size has another content: that is one difference,
// and the device cannot make this read more than the layers have.
func (c *comparison) file(n int, got *inode, block uint64) error {
	p := &c.pairs[n]
	want := p.want
	if got.kind() != want.mode&typeMask {
		c.differ(&p.path, "type", kindName(want.mode), kindName(got.mode))
		return nil
	}
	if p.kind != got.kind() {
		c.differ(&p.path, "directory entry type", kindName(want.mode), kindName(p.kind))
	}
	switch got.kind() {
	case typeRegular:
		if got.size != want.size {
			c.differ(&p.path, "size", want.size, got.size)
		} else {
			c.jobs = append(c.jobs, job{block, int32(n)})
		}
	case typeSymlink:
		target, err := c.fs.readLink(got)
		if err != nil {
			return err
		}
		if target != want.target() {
			c.differ(&p.path, "target", fmt.Sprintf("%q", want.target()), fmt.Sprintf("%q", target))
		}
	case typeChar, typeBlock:
		if major, minor := got.device(); int64(major)<<20|int64(minor) != want.size {
			c.differ(&p.path, "device", deviceName(want.size>>20, want.size&maxMinor), deviceName(int64(major), int64(minor)))
		}
	}
	return c.attributes(&p.path, want, got)
}

// attributes compares what every inode has. Access and change times are not
// compared: reading and mounting change them.
func (c *comparison) attributes(p *path, want *node, got *inode) error {
	if want.mode&^typeMask != got.mode&^typeMask {
		c.differ(p, "mode", fmt.Sprintf("%#o", want.mode&^typeMask), fmt.Sprintf("%#o", got.mode&^typeMask))
	}
	if want.uid != got.uid {
		c.differ(p, "uid", want.uid, got.uid)
	}
	if want.gid != got.gid {
		c.differ(p, "gid", want.gid, got.gid)
	}
	if want.sec != got.sec || want.nsec != got.nsec {
		c.differ(p, "mtime", fmt.Sprintf("%d.%09d", want.sec, want.nsec), fmt.Sprintf("%d.%09d", got.sec, got.nsec))
	}
	if odd := got.flags &^ flagsSilent; odd != 0 {
		c.differ(p, "flags", "none", fmt.Sprintf("%#x", odd))
	}
	set, err := c.fs.readXattrs(got)
	if err != nil {
		return err
	}
	c.xattrs(p, want.xattrs(), set)
	return nil
}

// xattrs compares two sorted sets, one difference for each name.
func (c *comparison) xattrs(p *path, want, got xattrs) {
	for len(want) > 0 || len(got) > 0 {
		switch {
		case len(got) == 0 || len(want) > 0 && want[0].name < got[0].name:
			c.differ(p, "xattr "+want[0].name, want[0], "none")
			want = want[1:]
		case len(want) == 0 || want[0].name > got[0].name:
			c.differ(p, "xattr "+got[0].name, "none", got[0])
			got = got[1:]
		default:
			if want[0] != got[0] {
				c.differ(p, "xattr "+want[0].name, want[0], got[0])
			}
			want, got = want[1:], got[1:]
		}
	}
}

// kindName names a mode's file type.
func kindName(mode uint16) string {
	names := map[uint16]string{
		typeFIFO: "FIFO", typeChar: "character device", typeDir: "directory", typeBlock: "block device",
		typeRegular: "file", typeSymlink: "symlink", typeSocket: "socket", 0: "unknown",
	}
	return names[mode&typeMask]
}

// deviceName writes a device number.
func deviceName(major, minor int64) string { return fmt.Sprintf("%d:%d", major, minor) }
