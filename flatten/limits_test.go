package flatten

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"thaw/ext4"
)

func TestRefusedEntries(t *testing.T) {
	long := strings.Repeat("n", ext4.MaxName+1)
	xattr := func(name, value string) tar.Header {
		return tar.Header{Name: "f", PAXRecords: map[string]string{"SCHILY.xattr." + name: value}}
	}
	for _, c := range []struct {
		header tar.Header
		reason string
	}{
		{tar.Header{Name: "d/" + long}, "a name of 256 bytes"},
		{tar.Header{Name: long + "/f"}, "a name of 256 bytes"},
		{tar.Header{Name: strings.Repeat("d/", 2048) + "f"}, "a path of 4097 bytes"},
		{tar.Header{Name: strings.Repeat("d/", 100_000) + "f"}, "a path of 200001 bytes"},
		{tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: long}, "a name of 256 bytes"},
		{tar.Header{Name: "s", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("t", 4096)}, "longer than 4095"},
		{tar.Header{Name: "s", Typeflag: tar.TypeSymlink, Linkname: ""}, "empty"},
		{tar.Header{Name: "c", Typeflag: tar.TypeChar, Devmajor: 4096}, "device numbers 4096:0"},
		{tar.Header{Name: "b", Typeflag: tar.TypeBlock, Devminor: 1 << 20, Format: tar.FormatGNU}, "device numbers 0:1048576"},
		{tar.Header{Name: "f", Uid: 1<<32 - 1}, "owner 4294967295:0"},
		{tar.Header{Name: "f", Gid: 1<<32 - 1}, "owner 0:4294967295"},
		{tar.Header{Name: "f", Uid: -1, Format: tar.FormatGNU}, "owner -1:0"},
		{tar.Header{Name: "f", Typeflag: 'V', Format: tar.FormatGNU}, `type 'V'`},
		{tar.Header{Name: "f", Typeflag: 'M', Format: tar.FormatGNU}, `type 'M'`},
		{tar.Header{Name: "f", Typeflag: 'D', Format: tar.FormatGNU}, `type 'D'`},
		{xattr("user.v", strings.Repeat("v", maxXattrValue+1)), "65536 are the limit"},
		{xattr("user."+long, "v"), "name of 256 bytes"},
		{xattr("system.posix_acl_access", "not a list"), "access control list"},
	} {
		_, err := pack(tarball(t, item{Header: c.header}))
		if !errors.Is(err, ErrLayer) || !strings.Contains(err.Error(), c.reason) || len(err.Error()) > 600 || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.40q %q: %v, want %q", c.header.Name, c.header.Typeflag, err, c.reason)
		}
	}
}

// raw gives a tar of one header block with fields overwritten, its checksum
// right, and what follows it.
func raw(fields map[int]string, behind string) []byte {
	b := make([]byte, 512, 2048+len(behind))
	put := func(at int, s string) { copy(b[at:], s) }
	put(0, "name")
	put(100, "0000644\x00")
	put(108, "0000000\x00")
	put(116, "0000000\x00")
	put(124, "00000000000\x00")
	put(136, "00000000000\x00")
	put(156, "0")
	put(257, "ustar\x0000")
	for at, s := range fields {
		put(at, s)
	}
	put(148, "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	put(148, fmt.Sprintf("%06o\x00 ", sum))
	return append(append(b, behind...), make([]byte, 1024)...)
}

// binarySize is a size field in base 256.
func binarySize(n int64) string {
	b := binary.BigEndian.AppendUint64(make([]byte, 4), uint64(n))
	if n < 0 {
		copy(b, "\xff\xff\xff\xff")
	}
	b[0] |= 0x80
	return string(b)
}

// pax gives an extended header with these records, in front of a file.
func pax(records ...string) []byte {
	var body strings.Builder
	for _, r := range records {
		n := len(r) + 3
		for n != len(fmt.Sprint(n))+len(r)+2 {
			n++
		}
		fmt.Fprintf(&body, "%d %s\n", n, r)
	}
	padded := body.String() + strings.Repeat("\x00", -body.Len()&511)
	h := raw(map[int]string{124: fmt.Sprintf("%011o\x00", body.Len()), 156: "x"}, padded)
	return append(h[:512+len(padded)], raw(nil, "")...)
}

// hostile are tars that no tool writes. FuzzPack starts from them too.
func hostile() map[string][]byte {
	whole := raw(map[int]string{124: "00000002000\x00"}, strings.Repeat("c", 1024))
	return map[string][]byte{
		"noise":                        []byte(strings.Repeat("noise ", 200)),
		"checksum":                     append([]byte{'x'}, whole[1:]...),
		"cut in the header":            whole[:100],
		"cut in the content":           whole[:700],
		"negative size":                raw(map[int]string{124: binarySize(-512)}, ""),
		"size of 2^63-1":               raw(map[int]string{124: binarySize(1<<63 - 1)}, "x"),
		"size of 1 TiB":                raw(map[int]string{124: binarySize(1 << 40)}, "x"),
		"size of 256 GiB + 1":          raw(map[int]string{124: binarySize(maxFile + 1)}, "x"),
		"size not a number":            raw(map[int]string{124: "zzzzzzzzzzz\x00"}, ""),
		"PAX path with a NUL":          pax("path=a\x00b"),
		"PAX symlink with a NUL":       pax("linkpath=a\x00b"),
		"PAX record of length 0":       append(raw(map[int]string{124: "00000001000\x00", 156: "x"}, "0 a=b\n"+strings.Repeat("\x00", 506))[:1024], raw(nil, "")...),
		"PAX header of 2 MiB":          append(raw(map[int]string{124: "00010000000\x00", 156: "x"}, strings.Repeat("x", 2<<20))[:512+2<<20], raw(nil, "")...),
		"PAX size below what is there": pax("size=-1"),
		"PAX time not a number":        pax("mtime=yesterday"),
		"PAX sparse, no map":           pax("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=999999999999", "GNU.sparse.name=f"),
		"PAX sparse, map backwards":    pax("GNU.sparse.numblocks=2", "GNU.sparse.map=4096,512,0,512", "GNU.sparse.size=8192"),
		"PAX sparse, past the end":     pax("GNU.sparse.numblocks=1", "GNU.sparse.map=9223372036854775807,1", "GNU.sparse.size=8192"),
		"long name of 1 GiB":           raw(map[int]string{0: "././@LongLink", 124: "10000000000\x00", 156: "L"}, "x"),
	}
}

func TestHostileTars(t *testing.T) {
	for about, b := range hostile() {
		_, err := pack(b)
		if !errors.Is(err, ErrLayer) || len(err.Error()) > 600 {
			t.Errorf("%s: %v", about, err)
		}
	}
	for about, b := range map[string][]byte{
		"no bytes":               {},
		"zeros":                  make([]byte, 1024),
		"no end":                 raw(nil, "")[:512],
		"zeros and then garbage": append(make([]byte, 1024), "garbage"...),
		"time of year 1":         pax("mtime=-62135596800"),
		"time past all clocks":   pax("mtime=9223372036854775807"),
	} {
		l, err := pack(b)
		if err != nil {
			t.Errorf("%s: %v", about, err)
			continue
		}
		mustBuild(t, l)
	}
}

// What the reader says is passed on, and is no ErrLayer; the reader is read to
// its end, where digests are checked.
func TestReaderErrorsArePassedOn(t *testing.T) {
	whole := tarball(t, parse("a=1 b=2 c=3")...)
	broken := errors.New("the digest differs")
	for _, n := range []int{0, 100, 512, 700, 1024, len(whole) - 1024, len(whole)} {
		_, err := Pack(io.MultiReader(bytes.NewReader(whole[:n]), iotest.ErrReader(broken)), image{}, nil)
		if !errors.Is(err, broken) || errors.Is(err, ErrLayer) {
			t.Errorf("reader fails at byte %d: %v", n, err)
		}
	}
	if _, err := Pack(iotest.OneByteReader(bytes.NewReader(whole)), image{}, nil); err != nil {
		t.Error(err)
	}
}

var errFull = errors.New("full")

// full is a writer that takes a number of writes.
type full struct{ left int }

func (f *full) WriteAt(p []byte, _ int64) (int, error) {
	if f.left--; f.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriterErrorsArePassedOn(t *testing.T) {
	layer := tarball(t, append(parse("d/ d/e/f=1 l->"+strings.Repeat("t", 100)), item{Header: tar.Header{Name: "big"}, content: strings.Repeat("b", 3<<20)})...)
	for n := range 3 {
		if _, err := Pack(bytes.NewReader(layer), &full{n}, nil); !errors.Is(err, errFull) {
			t.Errorf("Pack with room for %d writes: %v", n, err)
		}
	}
	l := mustPack(t, layer)
	for n := range 6 {
		tree := NewTree(&full{n})
		_, err := tree.Apply(l.Layer)
		if err == nil {
			_, err = tree.Finish(defaultFree)
		}
		if !errors.Is(err, errFull) {
			t.Errorf("tree with room for %d writes: %v", n, err)
		}
	}
}

// 65,000 names of one file, and not one more: in one layer, and in two.
func TestLinkLimit(t *testing.T) {
	items := parse("first=1")
	for i := range ext4.MaxLinks - 1 {
		items = append(items, item{Header: tar.Header{Name: fmt.Sprintf("d%d/n%d", i%10, i), Typeflag: tar.TypeLink, Linkname: "first", Format: tar.FormatUSTAR}})
	}
	l := mustPack(t, tarball(t, items...))
	m, tree, s := mustBuild(t, l)
	if n := tree.root.dir.children["first"]; n.links != ext4.MaxLinks {
		t.Errorf("%d links", n.links)
	}
	fsck(t, m.file(t, s.Size))
	more := mustPack(t, tarball(t, parse("more=>first")...))
	if _, _, _, err := build(l, more); !errors.Is(err, ErrLayer) || !strings.Contains(err.Error(), "65000 names") {
		t.Errorf("one name more: %v", err)
	}
	if _, _, _, err := build(l, mustPack(t, tarball(t, parse(".wh.first more=>d0/n0")...))); err != nil {
		t.Errorf("one name less, one more: %v", err)
	}
}

// A directory's links are 65,000 at most; with more it says 1 (dir_nlink).
func TestSubdirectoryLimit(t *testing.T) {
	for _, n := range []int{ext4.MaxLinks - 2, ext4.MaxLinks - 1} {
		items := make([]item, n)
		for i := range items {
			items[i] = item{Header: tar.Header{Name: fmt.Sprintf("d/%d", i), Typeflag: tar.TypeDir, Format: tar.FormatUSTAR}}
		}
		_, tree, s := mustBuild(t, mustPack(t, tarball(t, items...)))
		if got := dirLinks(tree.root.dir.children["d"].dir); n+2 <= ext4.MaxLinks && got != uint32(n+2) || n+2 > ext4.MaxLinks && got != 1 {
			t.Errorf("%d links of a directory of %d directories", got, n)
		}
		if s.Entries != n+2 {
			t.Errorf("%d entries", s.Entries)
		}
	}
}

// Symlinks lead deeper than any path: bounded all the same.
func TestDepthLimit(t *testing.T) {
	items := parse(strings.Repeat("d/", 1000) + " l->" + strings.TrimSuffix(strings.Repeat("d/", 1000), "/"))
	_, _, s := mustBuild(t, mustPack(t, tarball(t, items...)))
	if s.Entries != 1002 {
		t.Errorf("%d entries", s.Entries)
	}
	items = append(items, parse("l/"+strings.Repeat("e/", 1000)+" m->l/"+strings.TrimSuffix(strings.Repeat("e/", 1000), "/")+" m/"+strings.Repeat("f/", 100))...)
	_, _, _, err := build(mustPack(t, tarball(t, items...)))
	if !errors.Is(err, ErrLayer) || !strings.Contains(err.Error(), "2048 directories") {
		t.Errorf("2,100 directories above one another: %v", err)
	}
}

func TestTooLarge(t *testing.T) {
	m := image{}
	tree := NewTree(m)
	l := &Layer{data: 100 << 30}
	for range 2 {
		if _, err := tree.Apply(l); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tree.Apply(l); !errors.Is(err, ext4.ErrTooLarge) {
		t.Errorf("300 GiB of layers: %v", err)
	}
	tree = NewTree(m)
	for range ext4.MaxGroups {
		tree.inodes = append(tree.inodes, nil)
	}
	if _, err := tree.Apply(mustPack(t, tarball(t, parse("a=1")...)).Layer); !errors.Is(err, ext4.ErrTooLarge) {
		t.Errorf("an inode too many: %v", err)
	}
	tree = NewTree(m)
	tree.layer = maxLayers
	if _, err := tree.Apply(&Layer{}); !errors.Is(err, ErrLayer) {
		t.Errorf("65,536 layers: %v", err)
	}
	for _, free := range []Free{{Bytes: 256 << 30}, {Inodes: 5 << 20}} {
		if _, err := NewTree(m).Finish(free); !errors.Is(err, ext4.ErrTooLarge) {
			t.Errorf("%+v: %v", free, err)
		}
	}
}

func TestFinishToASize(t *testing.T) {
	for size, ok := range map[int64]bool{20 * groupSize: true, 20*groupSize + 4096: false, groupSize: false} {
		m := image{}
		s, err := NewTree(m).Finish(Free{Bytes: 1 << 20, Inodes: 100, Size: size})
		if (err == nil) != ok || ok && s.Size != size {
			t.Errorf("size %d: %d, %v", size, s.Size, err)
		}
		if ok {
			fsck(t, m.file(t, s.Size))
		}
	}
}

// A time that ext4 cannot hold becomes the nearest that it can.
func TestTimesAreClamped(t *testing.T) {
	for _, c := range []struct {
		in   time.Time
		want ext4.Time
	}{
		{time.Unix(-1<<31-1, 5), ext4.Time{Sec: (-1 << 31)}},
		{time.Unix(-1<<31, 5), ext4.Time{Sec: (-1 << 31), Nsec: 5}},
		{time.Unix(-1, 1), ext4.Time{Sec: -1, Nsec: 1}},
		{time.Unix((3<<32 + 1<<31 - 1), 999_999_999), ext4.Time{Sec: (3<<32 + 1<<31 - 1), Nsec: 999_999_999}},
		{time.Unix((3<<32+1<<31-1)+1, 5), ext4.Time{Sec: (3<<32 + 1<<31 - 1)}},
		{time.Unix(1<<62, 5), ext4.Time{Sec: (3<<32 + 1<<31 - 1)}},
		{time.Time{}, ext4.Time{Sec: (-1 << 31)}},
	} {
		e, err := newEntry(&tar.Header{Name: "f", Typeflag: tar.TypeReg, ModTime: c.in})
		if err != nil || e.mtime != c.want {
			t.Errorf("%v becomes %v, want %v; %v", c.in, e.mtime, c.want, err)
		}
	}
}
