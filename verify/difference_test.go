package verify

import (
	"archive/tar"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// sample is a tree with something of most kinds.
func sample() []item {
	return []item{
		dir("."), dir("d"), file("d/f", "hello").xattr("user.a", "b").xattr("user.long", strings.Repeat("v", 100)), file("d/g", strings.Repeat("data", 5000)),
		symlink("d/l", "f"), symlink("d/long", strings.Repeat("t", 100)), made(tar.TypeFifo, "d/p", 0o644), file("h1", "linked"), hardlink("h2", "h1"), hardlink("h3", "h1"),
	}
}

// TestLayersDiffer changes one thing of the layers, and wants it to be found
// and nothing else.
func TestLayersDiffer(t *testing.T) {
	image := reference(t, sample())
	wantSame(t, image, layersOf(t, sample()))
	change := func(name string, f func(*item)) []item {
		items := sample()
		at := slices.IndexFunc(items, func(i item) bool { return i.Name == name })
		items[at] = items[at].with(f)
		return items
	}
	for _, c := range []struct {
		path, what string
		items      []item
	}{
		{"/d/f", "mode", change("d/f", func(i *item) { i.Mode = 0o4644 })},
		{"/d", "mode", change("d", func(i *item) { i.Mode = 0o750 })},
		{"/", "mode", change(".", func(i *item) { i.Mode = 0o750 })},
		{"/d/l", "uid", change("d/l", func(i *item) { i.Uid += 1 << 16 })},
		{"/d/p", "gid", change("d/p", func(i *item) { i.Gid++ })},
		{"/h1", "mtime", change("h1", func(i *item) { i.ModTime = time.Unix(stamp, 1) })},
		{"/d", "mtime", change("d", func(i *item) { i.ModTime = time.Unix(stamp+1, 0) })},
		{"/d/f", "size", change("d/f", func(i *item) { i.content, i.Size = "hello!", 6 })},
		{"/d/f", "content", change("d/f", func(i *item) { i.content = "hellO" })},
		{"/d/g", "content", change("d/g", func(i *item) { i.content = i.content[:19999] + "A" })},
		{"/d/l", "target", change("d/l", func(i *item) { i.Linkname = "g" })},
		{"/d/long", "target", change("d/long", func(i *item) { i.Linkname = i.Linkname[1:] })},
		{"/d/f", "xattr user.a", change("d/f", func(i *item) { i.PAXRecords[paxXattr+"user.a"] = "c" })},
		{"/d/f", "xattr user.a", change("d/f", func(i *item) { delete(i.PAXRecords, paxXattr+"user.a") })},
		{"/d/f", "xattr user.z", change("d/f", func(i *item) { i.PAXRecords[paxXattr+"user.z"] = "" })},
		{"/d/f", "xattr user.long", change("d/f", func(i *item) { i.PAXRecords[paxXattr+"user.long"] = strings.Repeat("v", 99) + "w" })},
		{"/d/p", "type", change("d/p", func(i *item) { i.Typeflag = tar.TypeReg })},
		{"/d", "type", append([]item{file("d", "")}, sample()[7:]...)},
		{"/h2", "hard link", change("h2", func(i *item) { i.Typeflag, i.content, i.Size, i.Mode = tar.TypeReg, "linked", 6, 0o644 })},
		{"/d/l", "extra", append(slices.Clone(sample()[:4]), sample()[5:]...)},
		{"/d", "extra", sample()[7:]},
		{"/new", "missing", append(sample(), file("new", ""))},
		{"/new", "missing", append(sample(), dir("new"), file("new/f", ""), dir("new/d"))},
		{"/d/f2", "hard link", append(sample(), hardlink("d/f2", "d/f"))},
	} {
		t.Run(strings.ReplaceAll(strings.Trim(c.path, "/")+" "+c.what, "/", "_"), func(t *testing.T) {
			if c.items[0].Name != "." {
				c.items = append([]item{dir(".")}, c.items...)
			}
			img := image
			if c.path == "/d/f2" { // the device has a copy where the layers have a link
				img = reference(t, append(sample(), file("d/f2", "hello").xattr("user.a", "b").xattr("user.long", strings.Repeat("v", 100))))
			}
			wantOne(t, img, layersOf(t, c.items), c.path, c.what)
		})
	}
}

// TestDeviceDiffers changes one thing of the image with debugfs.
func TestDeviceDiffers(t *testing.T) {
	image, layers := reference(t, sample()), layersOf(t, sample())
	original, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ command, path, what string }{
		{"sif /d/f mode 0100600", "/d/f", "mode"},
		{"sif /d/f uid 99999", "/d/f", "uid"},
		{"sif /d gid 99999", "/d", "gid"},
		{"sif /d/l mtime @5", "/d/l", "mtime"},
		{"sif /d/l mtime_extra 1", "/d/l", "mtime"},
		{"sif /d/l mtime_extra 4", "/d/l", "mtime"},
		{"sif /d/f size 4", "/d/f", "size"},
		{"sif /h1 links_count 4", "/h", "link count"},
		{"sif /d links_count 3", "/d", "link count"},
		{"sif / links_count 4", "/", "link count"},
		{"sif /d/f flags 0x80010", "/d/f", "flags"},
		{"ea_set /d/p user.x y", "/d/p", "xattr user.x"},
		{"ea_rm /d/f user.a", "/d/f", "xattr user.a"},
		{"ea_set /d/f user.a x", "/d/f", "xattr user.a"},
		{"rm /d/p", "/d/p", "missing"},
		{"mkdir /d/new", "/d/new", "extra"},
		{"symlink /d/new x", "/d/new", "extra"},
	} {
		t.Run(strings.ReplaceAll(c.command, "/", "_"), func(t *testing.T) {
			if err := os.WriteFile(image, original, 0o600); err != nil {
				t.Fatal(err)
			}
			debugfs(t, image, c.command)
			r := compare(t, image, layers)
			if r.Total != 1 || !strings.HasPrefix(r.Differences[0].Path, c.path) || r.Differences[0].What != c.what {
				t.Errorf("want one difference, %q: %s; got %v", c.path, c.what, r.Differences)
			}
		})
	}
}

// TestDevicesDiffer changes device numbers, in their old and new form.
func TestDevicesDiffer(t *testing.T) {
	needRoot(t)
	number := func(kind byte, name string, major, minor int64) item {
		i := made(kind, name, 0o640)
		i.Devmajor, i.Devminor = major, minor
		return i
	}
	items := []item{number(tar.TypeChar, "old", 5, 255), number(tar.TypeBlock, "new", 4095, 1<<20-1), number(tar.TypeChar, "zero", 0, 0), number(tar.TypeBlock, "minor", 1, 256)}
	image := reference(t, items)
	wantSame(t, image, layersOf(t, items))
	for n, i := range items {
		other := slices.Clone(items)
		other[n] = i.with(func(i *item) { i.Devminor ^= 1 << 7 })
		wantOne(t, image, layersOf(t, other), "/"+i.Name, "device")
		other[n] = i.with(func(i *item) { i.Typeflag ^= tar.TypeChar ^ tar.TypeBlock })
		wantOne(t, image, layersOf(t, other), "/"+i.Name, "type")
	}
}

// TestMergedLinks has a device where two equal files became one.
func TestMergedLinks(t *testing.T) {
	apart := []item{file("a", "x"), file("b", "x")}
	merged := []item{file("a", "x"), hardlink("b", "a")}
	wantOne(t, reference(t, merged), layersOf(t, apart), "/b", "hard link")
	wantOne(t, reference(t, apart), layersOf(t, merged), "/b", "hard link")
	crossed := []item{file("a", "x"), file("b", "x"), hardlink("c", "a"), hardlink("d", "b")}
	straight := []item{file("a", "x"), file("b", "x"), hardlink("c", "b"), hardlink("d", "a")}
	if r := compare(t, reference(t, crossed), layersOf(t, straight)); r.Total == 0 {
		t.Error("crossed links were not found")
	}
}

// TestReportIsBounded counts all differences and lists a hundred.
func TestReportIsBounded(t *testing.T) {
	var items []item
	for n := range 150 {
		items = append(items, file(fmt.Sprintf("f%03d", n), "x"))
	}
	r := compare(t, reference(t, nil), layersOf(t, items))
	if r.Total != 150 || len(r.Differences) != maxDifferences || r.Entries != 151 {
		t.Errorf("%d differences, %d listed, %d entries", r.Total, len(r.Differences), r.Entries)
	}
	if d := r.Differences[0].String(); d != `"/f000": missing: want file, got nothing` {
		t.Errorf("got %s", d)
	}
}
