package verify

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// whiteoutOf is an empty file, as whiteouts are.
func whiteoutOf(name string) item { return file(name, "") }

func opaqueIn(name string) item { return whiteoutOf(name + "/" + opaque) }

// rule is one rule of flattening: layers, and the tree they make, as others
// would unpack it.
type rule struct {
	name   string
	layers [][]item
	want   []item
}

// TestRules compares what layers make with images that mke2fs made of folders.
func TestRules(t *testing.T) {
	for _, rules := range [][]rule{pathRules(), replaceRules(), whiteoutRules(), linkRules()} {
		for _, r := range rules {
			t.Run(strings.ReplaceAll(r.name, " ", "-"), func(t *testing.T) {
				wantSame(t, reference(t, r.want), layersOf(t, r.layers...))
			})
		}
	}
}

func pathRules() []rule {
	old := dir("d").with(func(i *item) { i.Mode = 0o700 })
	return []rule{
		{"empty image", nil, nil},
		{"names are cleaned", [][]item{{dir("./a/"), file("/a//b", "1"), file("./a/./c", "2"), dir("./")}},
			[]item{dir("."), dir("a"), file("a/b", "1"), file("a/c", "2")}},
		{"root's metadata", [][]item{{file("f", "")}, {dir(".").with(func(i *item) { i.Mode = 0o1777 })}},
			[]item{dir(".").with(func(i *item) { i.Mode = 0o1777 }), file("f", "")}},
		{"missing parents", [][]item{{file("a/b/c", "x")}},
			[]item{implied("a"), implied("a/b"), file("a/b/c", "x")}},
		{"missing parent named later", [][]item{{file("d/f", "x"), old}}, []item{old, file("d/f", "x")}},
		{"parent through symlinks", [][]item{{dir("d"), symlink("l", "d"), symlink("m", "/l")}, {file("m/f", "x")}},
			[]item{dir("d"), symlink("l", "d"), symlink("m", "/l"), file("d/f", "x")}},
		{"parent above the root", [][]item{{dir("d"), symlink("d/l", "../../../e"), file("d/l/f", "x")}},
			[]item{dir("d"), symlink("d/l", "../../../e"), implied("e"), file("e/f", "x")}},
		{"parent behind a dangling symlink", [][]item{{symlink("l", "p/q"), file("l/f", "x")}},
			[]item{symlink("l", "p/q"), implied("p"), implied("p/q"), file("p/q/f", "x")}},
		{"last component is not followed", [][]item{{file("d", "old"), symlink("l", "d")}, {file("l", "new")}},
			[]item{file("d", "old"), file("l", "new")}},
		{"names of bytes", [][]item{{file("\xff\x80", "x"), file("é", "y")}}, []item{file("\xff\x80", "x"), file("é", "y")}},
		{"longest name", [][]item{{file(strings.Repeat("n", 255), "x")}}, []item{file(strings.Repeat("n", 255), "x")}},
		{"forty symlinks", [][]item{append([]item{dir("l0")}, chain(40, "/f")...)}, append([]item{dir("l0"), file("l0/f", "x")}, chain(40, "")...)},
	}
}

// chain gives symlinks l1 … ln, each to the one before, and a file through the
// last if asked for.
func chain(n int, through string) []item {
	var items []item
	for i := 1; i <= n; i++ {
		items = append(items, symlink(fmt.Sprintf("l%d", i), fmt.Sprintf("l%d", i-1)))
	}
	if through != "" {
		items = append(items, file(fmt.Sprintf("l%d%s", n, through), "x"))
	}
	return items
}

func replaceRules() []rule {
	changed := dir("d").with(func(i *item) { i.Mode, i.ModTime = 0o2711, time.Unix(5, 0) })
	return []rule{
		{"directory over directory", [][]item{{dir("d").xattr("user.a", "1"), file("d/f", "x")}, {changed.xattr("user.b", "2")}},
			[]item{changed.xattr("user.b", "2"), file("d/f", "x")}},
		{"file over file", [][]item{{file("f", "old").xattr("user.a", "1")}, {file("f", "new!")}}, []item{file("f", "new!")}},
		{"file over file in one layer", [][]item{{file("f", "old"), file("f", "new!")}}, []item{file("f", "new!")}},
		{"file over directory", [][]item{{dir("d"), dir("d/e"), file("d/e/f", "x")}, {file("d", "y")}}, []item{file("d", "y")}},
		{"directory over file", [][]item{{file("d", "y")}, {dir("d"), file("d/f", "x")}}, []item{dir("d"), file("d/f", "x")}},
		{"symlink over directory", [][]item{{dir("a"), file("a/f", "x"), dir("b")}, {symlink("a", "b"), file("a/g", "y")}},
			[]item{symlink("a", "b"), dir("b"), file("b/g", "y")}},
		{"directory over symlink", [][]item{{dir("b"), symlink("a", "b")}, {dir("a"), file("a/f", "x")}},
			[]item{dir("b"), dir("a"), file("a/f", "x")}},
		{"one of two links replaced", [][]item{{file("a", "x"), hardlink("b", "a")}, {file("a", "y")}}, []item{file("a", "y"), file("b", "x")}},
		{"old and odd types", [][]item{{
			file("cont", "x").with(func(i *item) { i.Typeflag = tar.TypeCont }),
			{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "global", PAXRecords: map[string]string{"comment": "c"}}},
			made(tar.TypeFifo, "fifo", 0o604),
		}}, []item{file("cont", "x"), made(tar.TypeFifo, "fifo", 0o604)}},
		{"time is clamped", [][]item{{
			file("a", "").with(func(i *item) { i.ModTime = time.Unix(1<<40, 7) }),
			file("b", "").with(func(i *item) { i.ModTime = time.Unix(maxTime, 999_999_999) }),
			file("c", "").with(func(i *item) { i.ModTime = time.Unix(1_700_000_000, 123_456_789) }),
		}}, []item{
			file("a", "").with(func(i *item) { i.ModTime = time.Unix(maxTime, 0) }),
			file("b", "").with(func(i *item) { i.ModTime = time.Unix(maxTime, 999_999_999) }),
			file("c", "").with(func(i *item) { i.ModTime = time.Unix(1_700_000_000, 123_456_789) }),
		}},
		{"owners of 32 bits", [][]item{{file("a", "").with(func(i *item) { i.Uid, i.Gid = maxID, 70_000 })}},
			[]item{file("a", "").with(func(i *item) { i.Uid, i.Gid = maxID, 70_000 })}},
		{"xattrs of other name spaces", [][]item{{file("a", "").xattr("user.k", "v").xattr("com.apple.x", "v").xattr("system.other", "v").xattr("user", "v2")}},
			[]item{file("a", "").xattr("user.k", "v")}},
	}
}

func whiteoutRules() []rule {
	base := []item{dir("d"), file("d/a", "1"), file("d/b", "2"), dir("d/e"), file("d/e/f", "3")}
	return []rule{
		{"whiteout of a file", [][]item{base, {whiteoutOf("d/.wh.a")}}, []item{dir("d"), file("d/b", "2"), dir("d/e"), file("d/e/f", "3")}},
		{"whiteout of a directory", [][]item{base, {whiteoutOf(".wh.d")}}, nil},
		{"whiteout of nothing", [][]item{base, {whiteoutOf("d/.wh.z"), whiteoutOf("y/z/.wh.x")}}, base},
		{"whiteout of its own layer", [][]item{{file("a", "1"), whiteoutOf(".wh.a")}}, []item{file("a", "1")}},
		{"whiteout before a new entry", [][]item{base, {whiteoutOf(".wh.d"), dir("d"), file("d/n", "4")}}, []item{dir("d"), file("d/n", "4")}},
		{"whiteout after a new entry", [][]item{base, {file("d/e/n", "4"), whiteoutOf(".wh.d")}}, []item{dir("d"), dir("d/e"), file("d/e/n", "4")}},
		{"whiteout after a new file", [][]item{base, {file("d/a", "9"), whiteoutOf("d/.wh.a"), whiteoutOf("d/.wh.b")}},
			[]item{dir("d"), file("d/a", "9"), dir("d/e"), file("d/e/f", "3")}},
		{"whiteout after the directory itself", [][]item{base, {dir("d"), whiteoutOf(".wh.d")}}, []item{dir("d")}},
		{"whiteout through a symlink", [][]item{append(base, symlink("l", "d")), {whiteoutOf("l/.wh.a"), whiteoutOf("l/e/.wh.f")}},
			[]item{dir("d"), file("d/b", "2"), dir("d/e"), symlink("l", "d")}},
		{"whiteout of a symlink", [][]item{append(base, symlink("l", "d")), {whiteoutOf(".wh.l")}}, base},
		{"whiteout of any type", [][]item{base, {dir("d/.wh.a"), symlink("d/.wh.b", "x"), hardlink("d/e/.wh.f", "no")}}, []item{dir("d"), dir("d/e")}},
		{"opaque", [][]item{base, {opaqueIn("d")}}, []item{dir("d")}},
		{"opaque before and after", [][]item{base, {file("d/n", "4"), opaqueIn("d"), file("d/e/m", "5")}},
			[]item{dir("d"), file("d/n", "4"), implied("d/e"), file("d/e/m", "5")}},
		{"opaque after a new entry below", [][]item{base, {file("d/e/m", "5"), opaqueIn("d")}}, []item{dir("d"), dir("d/e"), file("d/e/m", "5")}},
		{"opaque root", [][]item{append(base, dir(".")), {file("n", "4"), whiteoutOf(opaque)}}, []item{dir("."), file("n", "4")}},
		{"opaque of nothing", [][]item{base, {opaqueIn("z")}}, base},
		{"other marks", [][]item{base, {whiteoutOf(".wh..wh.plnk"), dir(".wh..wh.aufs"), whiteoutOf("d/.wh..wh.orph")}}, base},
		{"hidden, then back, then hidden", [][]item{base, {whiteoutOf("d/.wh.a")}, {file("d/a", "7")}, {whiteoutOf("d/.wh.b")}},
			[]item{dir("d"), file("d/a", "7"), dir("d/e"), file("d/e/f", "3")}},
	}
}

func linkRules() []rule {
	return []rule{
		{"link across layers", [][]item{{file("a", "x")}, {hardlink("b", "./a")}}, []item{file("a", "x"), hardlink("b", "a")}},
		{"link to a hidden file's inode", [][]item{{file("a", "x")}, {hardlink("b", "/a"), whiteoutOf(".wh.a")}}, []item{file("b", "x")}},
		{"link before its target", [][]item{{hardlink("c", "b"), hardlink("b", "a"), file("a", "x")}},
			[]item{file("a", "x"), hardlink("b", "a"), hardlink("c", "a")}},
		{"link through symlinks", [][]item{{dir("d"), file("d/f", "x"), symlink("l", "/d"), hardlink("l/g", "l/f")}},
			[]item{dir("d"), file("d/f", "x"), symlink("l", "/d"), hardlink("d/g", "d/f")}},
		{"link to itself", [][]item{{file("a", "x"), hardlink("a", "a")}}, []item{file("a", "x")}},
		{"link to itself changes nothing", [][]item{{file("a", "x")}, {hardlink("a", "a"), whiteoutOf(".wh.a")}}, nil},
		{"link over a file", [][]item{{file("a", "x"), file("b", "y"), hardlink("b", "a")}}, []item{file("a", "x"), hardlink("b", "a")}},
		{"link makes its parents", [][]item{{file("a", "x"), hardlink("p/q", "a")}}, []item{file("a", "x"), implied("p"), hardlink("p/q", "a")}},
	}
}

// TestRefused has what no layer may hold, and what the error says of it.
func TestRefused(t *testing.T) {
	bad := func(change func(*item)) []item { return []item{file("f", "").with(change)} }
	for name, c := range map[string]struct {
		layers []item
		says   string
	}{
		"up":                               {[]item{file("a/../b", "")}, "escapes the tree"},
		"link over its target's directory": {[]item{dir("d"), file("d/f", "x"), hardlink("d", "d/f")}, "inside of what it replaces"},
		"link-up":                          {[]item{hardlink("a", "../b")}, "escapes the tree"},
		"long":                             {[]item{file(strings.Repeat("n", 256), "")}, "256 bytes"},
		"root-file":                        {[]item{file(".", "x")}, "root"},
		"root-link":                        {[]item{file("a", ""), hardlink(".", "a")}, "root"},
		"parent-is-file":                   {[]item{file("a", ""), file("a/b", "")}, "no directory"},
		"loop":                             {[]item{symlink("l", "m"), symlink("m", "l"), file("l/f", "")}, "symlinks"},
		"41-symlinks":                      {append([]item{dir("l0")}, chain(41, "/f")...), "symlinks"},
		"whiteout-empty":                   {[]item{whiteoutOf("d/.wh.")}, "whiteout"},
		"whiteout-dot":                     {[]item{whiteoutOf(".wh..")}, "whiteout"},
		"whiteout-dots":                    {[]item{whiteoutOf(".wh...")}, "whiteout"},
		"link-missing":                     {[]item{hardlink("a", "nothing")}, "does not exist"},
		"link-cycle":                       {[]item{hardlink("a", "b"), hardlink("b", "a")}, "does not exist"},
		"link-directory":                   {[]item{dir("d"), hardlink("a", "d")}, "directory"},
		"link-root":                        {[]item{hardlink("a", "/")}, "directory"},
		"uid":                              {bad(func(i *item) { i.Uid = 1<<32 - 1 }), "owner"},
		"gid":                              {bad(func(i *item) { i.Gid = -1 }), "owner"},
		"major":                            {bad(func(i *item) { i.Typeflag, i.Devmajor = tar.TypeChar, 4096 }), "device number"},
		"minor":                            {bad(func(i *item) { i.Typeflag, i.Devminor = tar.TypeBlock, 1<<20 }), "device number"},
		"acl":                              {[]item{file("f", "").xattr(accessACL, "nonsense")}, accessACL},
		"xattr-name":                       {[]item{file("f", "").xattr("user."+strings.Repeat("n", 256), "")}, "256"},
		"xattr-value":                      {[]item{file("f", "").xattr("user.n", strings.Repeat("v", 65537))}, "65537"},
		"type":                             {bad(func(i *item) { i.Typeflag = 'Z' }), "'Z'"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := applyLayers(t.Context(), tars{makeAnyTar(t, c.layers...)})
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want a refusal that says %q", err, c.says)
			}
		})
	}
}

// makeAnyTar writes a tar with what archive/tar would not write: types it does
// not know are put into the header afterwards.
func makeAnyTar(t *testing.T, items ...item) []byte {
	if len(items) == 1 && items[0].Typeflag == 'Z' {
		b := makeTar(t, file("f", ""))
		at := bytes.Index(b, []byte("ustar"))
		header := b[at-257:][:512]
		header[156] = 'Z'
		copy(header[148:156], "        ")
		sum := 0
		for _, c := range header {
			sum += int(c)
		}
		copy(header[148:156], fmt.Sprintf("%06o\x00 ", sum))
		return b
	}
	return makeTar(t, items...)
}

// TestTooLarge has sparse files whose size alone is refused, unread.
func TestTooLarge(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "f", Size: maxFile + 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := applyLayers(t.Context(), tars{b.Bytes()}); !errors.Is(err, ErrRefused) {
		t.Errorf("got %v", err)
	}
}

// TestTooManyLinks counts the names that are left at the end.
func TestTooManyLinks(t *testing.T) {
	items := []item{file("f", "")}
	for n := range maxLinks {
		items = append(items, hardlink(fmt.Sprint(n), "f"))
	}
	if _, err := applyLayers(t.Context(), layersOf(t, items)); !errors.Is(err, ErrRefused) {
		t.Errorf("%d links: got %v", maxLinks+1, err)
	}
	if _, err := applyLayers(t.Context(), layersOf(t, items, []item{whiteoutOf(".wh.f")})); err != nil {
		t.Errorf("%d links: got %v", maxLinks, err)
	}
}

// badLayer fails where a layer may fail.
type badLayer struct {
	data             []byte
	open, end, close error
}

func (badLayer) Len() int { return 1 }

func (l badLayer) Open(context.Context, int) (io.ReadCloser, error) { return &l, l.open }

func (l *badLayer) Read(p []byte) (int, error) {
	if len(l.data) == 0 {
		return 0, l.end
	}
	n := copy(p, l.data)
	l.data = l.data[n:]
	return n, nil
}

func (l *badLayer) Close() error { return l.close }

// TestLayerErrors passes on what a layer reader says, at its very end too.
func TestLayerErrors(t *testing.T) {
	wrong, good := errors.New("digest is wrong"), makeTar(t, file("f", "x"))
	for name, l := range map[string]badLayer{
		"open": {open: wrong}, "end": {data: append(good, make([]byte, 5000)...), end: wrong}, "close": {data: good, end: io.EOF, close: wrong},
	} {
		if _, err := applyLayers(t.Context(), l); !errors.Is(err, wrong) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := applyLayers(t.Context(), tars{good[:512]}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut tar: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := applyLayers(ctx, tars{good}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}
