package bench

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"thaw/catalog"
	"thaw/chunk"
	"thaw/flatten"
	"thaw/keys"
	"thaw/manifest"
	"thaw/oci"
	"thaw/origin"
)

// hello is a program that says hello, of an image.
type hello struct {
	image string
	argv  []string
	goal  float64 // share of the files' bytes that it may open
}

func hellos(class string) []hello {
	return []hello{
		{"python", []string{"python3", "-c", `import numpy; print("hello")`}, 0.09},
		{"node", []string{"node", "-e", `console.log("hello")`}, 0.25},
		{"jre", []string{"java", "-cp", class, "Hello"}, 0.16},
	}
}

// BenchmarkShareRead measures which part of an image a program opens that says
// hello: the bytes of all chunks that it touches, by those of all files. It is
// compared with the same tree in a device that mkfs.ext4 made, read in the same
// way.
func BenchmarkShareRead(b *testing.B) {
	asRoot(b, "umoci", "mkfs.ext4")
	for _, h := range hellos("/hello") {
		b.Run(h.image, func(b *testing.B) { benchShare(b, h) })
	}
}

func benchShare(b *testing.B, h hello) {
	p := newPlace(b, h.image)
	rootfs := filepath.Join(b.TempDir(), "rootfs")
	unpack(b, h.image, rootfs)
	files := treeBytes(b, rootfs)
	p.storeMkfs(b, h.image, rootfs)
	classes := openDir(b)
	try(b, os.WriteFile(filepath.Join(classes, "Hello.class"), helloClass(), 0o644))
	share := func(image string) (float64, startNumbers) {
		p.forget(b)
		stats := filepath.Join(b.TempDir(), "stats.json")
		r := begin(b, p.thaw, p.args(append([]string{"run", "-v", classes + ":/hello:ro", "--stats-json", stats, image}, h.argv...)...)...)
		r.end(b)
		if r.line != "hello\n" {
			b.Fatalf("it said %q", r.line)
		}
		var n startNumbers
		readJSON(b, stats, &n)
		return float64(n.Bytes.Cache+n.Bytes.Origin) / float64(files), n
	}
	var ours, theirs, ratios Ratios
	var n, m startNumbers
	for range 2 { // it hardly differs
		var x, y float64
		x, n = share(h.image)
		y, m = share(h.image + "-mkfs")
		ours, theirs, ratios = append(ours, 100*x), append(theirs, 100*y), append(ratios, x/y)
	}
	say("share read, %s: %v %% of %.1f MiB of files (goal %.0f), %d chunks of %d MiB in all; mkfs.ext4 -d: %v %%, %d chunks of %d MiB in all; ours ÷ it %v (goal 0.90)",
		h.image, ours, f(files), 100*h.goal, n.Chunks.Origin, n.ImageBytes/mib, theirs, m.Chunks.Origin, m.ImageBytes/mib, ratios)
	b.ReportMetric(ours[0], "%read")
	b.ReportMetric(ratios[0], "÷mkfs")
}

// storeMkfs makes a device of a tree with mkfs.ext4, and stores it in the place
// of one of ours, as IMAGE-mkfs.
func (p *place) storeMkfs(b testing.TB, image, rootfs string) {
	b.Helper()
	img := filepath.Join(b.TempDir(), "img")
	timed(b, "mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "^has_journal", "-U", "00000000-0000-0000-0000-000000000001",
		"-E", "hash_seed=00000000-0000-0000-0000-000000000002,lazy_itable_init=0", "-d", rootfs, img, "4G")
	ctx := context.Background()
	source, err := oci.Open(ctx, "oci:"+corpus(b, image), oci.Options{})
	try(b, err)
	m := &manifest.Manifest{
		Kind: manifest.Image, Tenant: "default", Layout: flatten.LayoutVersion, Size: 4 << 30, ChunkSize: 512 << 10,
		Source: source.ConfigDigest(), Config: source.Config(),
	}
	try(b, source.Close())
	o, err := origin.Open(ctx, "file://"+filepath.Join(p.state, "origin"))
	try(b, err)
	defer o.Close()
	key, err := keys.OpenExisting(ctx, "file://"+filepath.Join(p.state, "keys", "default"))
	try(b, err)
	defer key.Close()
	root, err := o.Active(ctx)
	try(b, err)
	salt := chunk.NewSalt(chunk.SaltParams{Root: root.Name, Epoch: root.Epoch, Placement: root.Placement, Class: root.Class, Layout: m.Layout})
	try(b, storeChunks(ctx, m, img, salt, o.Chunks(root.Name)))
	data, id, err := manifest.Seal(ctx, m, salt, key.URL(), key)
	try(b, err)
	_, err = o.Manifests(root.Name, m.Tenant).Put(ctx, id.String(), data)
	try(b, err)
	_, err = catalog.New(o, m.Tenant, key).Set(ctx, image+"-mkfs", id.String(), root.Name)
	try(b, err, os.Remove(img))
}

// storeChunks fills in the chunks of a manifest from the device in a file.
func storeChunks(ctx context.Context, m *manifest.Manifest, path string, salt chunk.Salt, store chunk.Store) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(16)
	var mu sync.Mutex // guards m.Chunks
	for index := range m.Size / int64(m.ChunkSize) {
		work.Go(func() error {
			plain := make([]byte, m.ChunkSize)
			if _, err := file.ReadAt(plain, index*int64(m.ChunkSize)); err != nil && err != io.EOF {
				return err
			}
			s := chunk.Seal(salt, plain)
			if len(s.Data) == 0 {
				return nil
			}
			mu.Lock()
			m.Chunks = append(m.Chunks, manifest.Entry{Index: uint32(index), Size: uint32(len(s.Data)), Name: s.Name, Key: s.Key})
			mu.Unlock()
			_, err := store.Put(ctx, s.Name, s.Data)
			return err
		})
	}
	err = work.Wait()
	slices.SortFunc(m.Chunks, func(x, y manifest.Entry) int { return int(x.Index) - int(y.Index) })
	return err
}

// helloClass is a Java class, Hello, whose main prints "hello" (The Java
// Virtual Machine Specification, chapter 4).
func helloClass() []byte {
	class := []byte{0xCA, 0xFE, 0xBA, 0xBE, 0, 0, 0, 52, 0, 23} // version of Java 8; 22 constants
	utf8 := func(s string) { class = append(append(class, 1, 0, byte(len(s))), s...) }
	refer := func(tag byte, to ...byte) {
		class = append(class, tag)
		for _, n := range to {
			class = append(class, 0, n)
		}
	}
	const classTag, stringTag, fieldTag, methodTag, nameTag = 7, 8, 9, 10, 12
	refer(classTag, 2) // 1: this class
	utf8("Hello")
	refer(classTag, 4) // 3: its parent
	utf8("java/lang/Object")
	utf8("main") // 5
	utf8("([Ljava/lang/String;)V")
	utf8("Code")           // 7
	refer(fieldTag, 9, 11) // 8: System.out
	refer(classTag, 10)    // 9
	utf8("java/lang/System")
	refer(nameTag, 12, 13) // 11
	utf8("out")
	utf8("Ljava/io/PrintStream;")
	refer(methodTag, 15, 17) // 14: println
	refer(classTag, 16)
	utf8("java/io/PrintStream")
	refer(nameTag, 18, 19) // 17
	utf8("println")
	utf8("(Ljava/lang/String;)V")
	refer(stringTag, 21) // 20
	utf8("hello")
	utf8("unused")
	code := []byte{
		0xB2, 0, 8, // getstatic System.out
		0x12, 20, // ldc "hello"
		0xB6, 0, 14, // invokevirtual println
		0xB1, // return
	}
	class = append(class, 0, 0x21, 0, 1, 0, 3, 0, 0, 0, 0, 0, 1) // public; no interfaces, no fields, one method
	class = append(class, 0, 9, 0, 5, 0, 6, 0, 1, 0, 7)          // public static main, with its code
	class = append(class, 0, 0, 0, byte(12+len(code)), 0, 2, 0, 1, 0, 0, 0, byte(len(code)))
	return append(append(class, code...), 0, 0, 0, 0, 0, 0) // no exceptions, no attributes
}
