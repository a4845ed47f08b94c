package mount

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// plain is the server to compare with: as little as go-fuse needs to serve one plain file.
type plain struct {
	fuse.RawFileSystem
	file  *os.File
	size  int64
	flags uint32
}

func (p *plain) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name != "image" {
		return fuse.ENOENT
	}
	out.NodeId, out.Generation, out.AttrValid, out.EntryValid = 2, 1, validity, validity
	out.Attr = fuse.Attr{Ino: 2, Mode: unix.S_IFREG | 0o400, Nlink: 1, Size: uint64(p.size)}
	return fuse.OK
}

func (p *plain) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = validity
	out.Attr = fuse.Attr{Ino: 2, Mode: unix.S_IFREG | 0o400, Nlink: 1, Size: uint64(p.size)}
	if in.NodeId == 1 {
		out.Attr = fuse.Attr{Ino: 1, Mode: unix.S_IFDIR | 0o700, Nlink: 2}
	}
	return fuse.OK
}

func (p *plain) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = p.flags
	return fuse.OK
}

func (p *plain) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, err := p.file.ReadAt(buf, int64(in.Offset))
	if n == 0 && err != nil {
		return nil, fuse.EIO
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// servePlain is the server process to compare with: descriptor 3 is the mount's, 4 the file.
func servePlain(flags uint32) func() error {
	return func() error {
		file := os.NewFile(4, "image")
		info, err := file.Stat()
		if err != nil {
			return err
		}
		p := &plain{RawFileSystem: fuse.NewDefaultRawFileSystem(), file: file, size: info.Size(), flags: flags}
		server, err := fuse.NewServer(p, "/dev/fd/3", &fuse.MountOptions{Name: "plain", MaxWrite: maxTransfer, MaxReadAhead: maxTransfer, DisableSplice: true})
		if err != nil {
			return err
		}
		server.Serve()
		return nil
	}
}

// aligned gives a buffer for direct I/O.
func aligned(b *testing.B, n int) []byte {
	p, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	try(b, err)
	b.Cleanup(func() { _ = unix.Munmap(p) })
	return p
}

// BenchmarkRead compares the FUSE file with one of a bare server, in turns: 4 KiB at random, and 1 MiB one after the other.
func BenchmarkRead(b *testing.B) {
	const size = 256 << 20
	base := place(b)
	file := filepath.Join("/dev/shm", filepath.Base(base))
	try(b, os.WriteFile(file, make([]byte, size), 0o600))
	b.Cleanup(func() { _ = os.Remove(file) })
	sources := []string{"server", "plain", "cached"}
	open := map[string]*os.File{}
	for _, as := range sources {
		s := serve(b, mkdir(b, base, as), file, as)
		f, err := os.OpenFile(s.image(), os.O_RDONLY|unix.O_DIRECT, 0)
		try(b, err)
		b.Cleanup(func() { _ = f.Close() })
		open[as] = f
	}
	for _, n := range []int{4096, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			p, times := aligned(b, n), map[string][]time.Duration{}
			round := func(f *os.File, i int) time.Duration {
				off := int64(i*n) % size
				if n == 4096 {
					off = rand.Int64N(size/4096) * 4096
				}
				start := time.Now()
				if _, err := f.ReadAt(p, off); err != nil {
					b.Fatal(err)
				}
				return time.Since(start)
			}
			// Blocks of reads of one server after the other: switching at every read would measure cold caches of the processor.
			const block = 200
			for i := 0; b.Loop(); i++ {
				for _, as := range sources {
					for j := range block {
						times[as] = append(times[as], round(open[as], i*block+j))
					}
				}
			}
			for _, as := range sources {
				b.ReportMetric(float64(median(times[as]).Nanoseconds())/1000, as+"-p50-µs")
				b.ReportMetric(float64(n)/1e6/(mean(times[as]).Seconds()), as+"-MB/s")
			}
			b.ReportMetric(median(times["plain"]).Seconds()/median(times["server"]).Seconds(), "ratio-of-medians")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}

func mean(d []time.Duration) time.Duration {
	var sum time.Duration
	for _, x := range d {
		sum += x
	}
	return sum / time.Duration(len(d))
}

// BenchmarkStack mounts and unmounts all of it, and tells how long each step takes.
func BenchmarkStack(b *testing.B) {
	base := place(b)
	image := filepath.Join(base, "ext4")
	makeImage(b, tree(b, mkdir(b, base, "source")), image, imageBytes)
	try(b, private(base))
	b.Cleanup(func() { _ = Unmount(base) })
	times := map[string][]time.Duration{}
	var names []string
	step := func(name string, do func()) {
		start := time.Now()
		do()
		if times[name] == nil {
			names = append(names, name)
		}
		times[name] = append(times[name], time.Since(start))
	}
	dirs := map[string]string{}
	for _, name := range []string{"fuse", "root", "mapped", "merged"} {
		dirs[name] = mkdir(b, base, name)
	}
	for i := 0; b.Loop(); i++ {
		s := serve(b, dirs["fuse"], image, "server")
		s.tell("faults") // it runs
		var l Loop
		upper, work := mkdir(b, base, fmt.Sprint("upper", i)), mkdir(b, base, fmt.Sprint("work", i))
		step("1-loop", func() {
			var err error
			l, err = AttachLoop(s.image(), true)
			try(b, err)
		})
		step("2-ext4", func() { try(b, MountExt4(l.Device, dirs["root"], true), l.Close()) })
		var ns *os.File
		step("3-userns", func() { ns = userNamespace(b) })
		step("3-idmap", func() { try(b, IDMap(dirs["root"], dirs["mapped"], ns), ns.Close()) })
		step("4-overlay", func() {
			try(b, MountOverlay(dirs["merged"], Overlay{Lower: []string{dirs["mapped"]}, Upper: upper, Work: work}))
		})
		step("5-unoverlay", func() { try(b, Unmount(dirs["merged"])) })
		step("6-unmap", func() { try(b, Unmount(dirs["mapped"])) })
		step("7-unext4", func() { try(b, Unmount(dirs["root"])) })
		step("8-unfuse", func() { try(b, Unmount(dirs["fuse"])) })
		s.ends()
		step("9-openfuse", func() {
			f, err := OpenFUSE(dirs["fuse"])
			try(b, err)
			step("9-unfuse", func() { try(b, f.Close(), Unmount(dirs["fuse"])) })
		})
	}
	for _, name := range names {
		b.ReportMetric(float64(median(times[name]).Microseconds())/1000, name+"-ms")
	}
}
