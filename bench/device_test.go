package bench

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/internal/testoci"
)

const (
	// blobBytes is a file that an agent can keep open whole: 256 MiB.
	blobBytes = 240 << 20
	// readBlock is how many reads go to one server before it is the other's
	// turn: switching at each would measure cold caches of the processor.
	readBlock = 200
)

// BenchmarkDevice compares the device that an agent serves with a plain file of
// the same bytes behind a bare server of the same library, both in the page
// cache: the file itself, and an ext4 on a loop device over it.
func BenchmarkDevice(b *testing.B) {
	asRoot(b, "fio", "tar")
	p := newPlace(b)
	blob := testoci.Noise(1, blobBytes)
	layout := filepath.Join(b.TempDir(), "layout")
	testoci.Layout(b, layout, nil, testoci.Tar(b, testoci.File("blob", blob)))
	p.convert(b, layout, "blob")
	p.convert(b, corpus(b, "python"), "python")
	b.Run("file", func(b *testing.B) { benchFile(b, p, blob) })
	b.Run("ext4", func(b *testing.B) { benchExt4(b, p) })
	b.Run("tree", func(b *testing.B) { benchTree(b, p) })
}

// reader reads a device directly.
type reader struct {
	b     testing.TB
	file  *os.File
	at    int64 // where the blob lies
	times []time.Duration
}

func openReader(b testing.TB, path string, at int64) *reader {
	b.Helper()
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	try(b, err)
	return &reader{b: b, file: file, at: at}
}

func (r *reader) read(p []byte, off int64) {
	start := time.Now()
	if _, err := r.file.ReadAt(p, r.at+off); err != nil {
		r.b.Fatal(err)
	}
	r.times = append(r.times, time.Since(start))
}

// sequential reads the blob in MiB from some place on.
func (r *reader) sequential(p []byte, from, n int) {
	for i := range n {
		r.read(p[:mib], int64(from+i)*mib%(blobBytes-mib)/mib*mib)
	}
}

func (r *reader) random(p []byte, n int) {
	for range n {
		r.read(p[:4096], rand.Int64N(blobBytes/4096-1)*4096)
	}
}

// take gives what the reads took together, and the middle one, and forgets them.
func (r *reader) take() (sum, p50 time.Duration) {
	slices.Sort(r.times)
	for _, d := range r.times {
		sum += d
	}
	p50 = r.times[len(r.times)/2]
	r.times = r.times[:0]
	return sum, p50
}

// aligned gives memory for direct reads.
func aligned(b testing.TB, n int) []byte {
	p, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	try(b, err)
	b.Cleanup(func() { _ = unix.Munmap(p) })
	return p
}

// find gives where in a device the blob begins. It lies in one piece.
func find(b testing.TB, path string, blob []byte) int64 {
	b.Helper()
	file, err := os.Open(path)
	try(b, err)
	defer file.Close()
	p := make([]byte, mib)
	for at := int64(0); ; at += mib {
		n, err := file.ReadAt(p, at)
		if i := bytes.Index(p[:n], blob[:4096]); i >= 0 {
			return at + int64(i)
		}
		if err == io.EOF {
			b.Fatal("the blob is not in the device")
		}
		try(b, err)
	}
}

func benchFile(b *testing.B, p *place, blob []byte) {
	_, release := p.hold(b, "blob")
	bare := plainFile(b, p.fuseFile(b))
	at := find(b, bare, blob)
	buf := aligned(b, mib)
	theirs := openReader(b, bare, at)
	defer theirs.file.Close()
	var first, seq, small, p50, median Ratios
	for range rounds {
		release() // a new agent has touched nothing
		_, release = p.hold(b, "blob")
		ours := openReader(b, p.fuseFile(b), at)
		ours.sequential(buf, 0, blobBytes/mib-1)
		o, _ := ours.take()
		theirs.sequential(buf, 0, blobBytes/mib-1)
		t, _ := theirs.take()
		first = append(first, t.Seconds()/o.Seconds())
		for i := range 10 {
			ours.sequential(buf, i*readBlock, readBlock)
			theirs.sequential(buf, i*readBlock, readBlock)
		}
		o, _ = ours.take()
		t, _ = theirs.take()
		seq = append(seq, t.Seconds()/o.Seconds())
		for range 50 {
			ours.random(buf, readBlock)
			theirs.random(buf, readBlock)
		}
		o, om := ours.take()
		t, tm := theirs.take()
		small, median = append(small, t.Seconds()/o.Seconds()), append(median, tm.Seconds()/om.Seconds())
		p50 = append(p50, float64(om.Nanoseconds())/1000)
		try(b, ours.file.Close())
	}
	release()
	say("device file ÷ plain file on FUSE, speed: 4 KiB at random %v, of medians %v (goal 0.80); 1 MiB sequential %v (goal 0.70), on first touch %v (goal 0.35); 4 KiB p50 as the reader sees it %v µs (goal 30)",
		small, median, seq, first, p50)
	b.ReportMetric(milliseconds(small).median(), "4KiB-ratio")
	b.ReportMetric(milliseconds(seq).median(), "1MiB-ratio")
	b.ReportMetric(milliseconds(first).median(), "first-ratio")
}

// fio reads a file directly for a second, and gives bytes a second.
func fio(b testing.TB, path, how, size string) float64 {
	b.Helper()
	o := timed(b, "fio", "--name=x", "--filename="+path, "--readonly", "--rw="+how, "--bs="+size, "--direct=1", "--ioengine=psync",
		"--runtime=1", "--time_based", "--output-format=json")
	var out struct {
		Jobs []struct {
			Read struct {
				Rate float64 `json:"bw_bytes"`
			}
		}
	}
	try(b, json.Unmarshal(o.stdout, &out))
	return out.Jobs[0].Read.Rate
}

func benchExt4(b *testing.B, p *place) {
	_, release := p.hold(b, "blob")
	defer release()
	ours, umount := overLoop(b, p.fuseFile(b))
	defer umount()
	theirs, umountBare := overLoop(b, plainFile(b, p.fuseFile(b)))
	defer umountBare()
	for _, dir := range []string{ours, theirs} { // touches all
		timed(b, "cat", filepath.Join(dir, "blob"))
	}
	for _, k := range []struct {
		how, size string
		goal      float64
	}{{"randread", "4k", 0.8}, {"read", "1m", 0.7}} {
		var ratios, rate Ratios
		for range 2 * rounds {
			o := fio(b, filepath.Join(ours, "blob"), k.how, k.size)
			rate = append(rate, o/mib)
			ratios = append(ratios, o/fio(b, filepath.Join(theirs, "blob"), k.how, k.size))
		}
		say("device ÷ plain file on FUSE, through loop and ext4, fio %s of %s: %v (goal %.2f); %v MiB/s", k.how, k.size, ratios, k.goal, rate)
		b.ReportMetric(milliseconds(ratios).median(), k.size+"-ratio")
	}
}

// benchTree reads all of an image's files through ext4, once by a new agent and
// once more, each time with nothing of the file system in the page cache.
func benchTree(b *testing.B, p *place) {
	_, release := p.hold(b, "python")
	bare := plainFile(b, p.fuseFile(b))
	tree := func(file string) float64 {
		dir, umount := overLoop(b, file)
		start := time.Now()
		timed(b, "sh", "-c", `tar -C "$1" -c . | cat >/dev/null`, "sh", dir) // to /dev/null itself, tar reads nothing
		took := time.Since(start)
		umount()
		return took.Seconds()
	}
	tree(bare)
	var first, second, seconds Ratios
	for range 3 {
		release()
		_, release = p.hold(b, "python")
		ours := p.fuseFile(b)
		one, t, two, u := tree(ours), tree(bare), tree(ours), tree(bare)
		first, second, seconds = append(first, t/one), append(second, u/two), append(seconds, u)
	}
	release()
	say("device ÷ plain file on FUSE, through loop and ext4, tar of python, 36,214 entries: first touch %v (goal 0.35), after %v (goal 0.70); the plain one takes %v s", first, second, seconds)
	b.ReportMetric(milliseconds(first).median(), "first-ratio")
	b.ReportMetric(milliseconds(second).median(), "second-ratio")
}
