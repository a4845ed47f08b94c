package bench

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// The images whose storing is compared, fixed before anything was measured:
// all of the corpus but its largest and the ones packed another way.
var dedupImages = [...]string{"base", "node", "python", "jre", "app-v1", "app-v2", "app-on-base", "app-on-node"}

// BenchmarkDedup compares the bytes that the corpus takes stored as chunks of
// devices with what other ways of storing it take.
func BenchmarkDedup(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("unpacking images with their owners needs root: run make bench as root")
	}
	thaw, state := program(b), b.TempDir()
	for _, name := range dedupImages {
		c, _ := convert(b, thaw, state, corpus(b, name))
		say("dedup: %s: %d chunks, %d new, %.1f MiB new", name, c.Chunks.Total-c.Chunks.Zero, c.Chunks.New, float64(c.Bytes.New)/mib)
	}
	ours := storedBytes(b, thaw, state)
	var layers, registry, casync int64
	seen, ids := map[string]bool{}, map[[32]byte]bool{}
	for _, name := range dedupImages {
		for _, blob := range layerBlobs(b, corpus(b, name)) {
			if seen[blob[len(blob)-64:]] {
				continue
			}
			seen[blob[len(blob)-64:]] = true
			info, err := os.Stat(blob)
			if err != nil {
				b.Fatal(err)
			}
			registry += info.Size()
			plain := gunzip(b, blob)
			layers += fileSize(b, plain)
			casync += contentDefined(b, plain, ids)
			if err := os.Remove(plain); err != nil {
				b.Fatal(err)
			}
		}
	}
	mkfs := mkfsBytes(b)
	say("dedup: thaw %.1f MiB; mkfs.ext4 -d in 512 KiB pieces %.1f MiB (ours ÷ it %.3f); whole layers, uncompressed %.1f MiB (%.3f); casync at a mean of 512 KiB %.1f MiB (%.3f); compressed in a registry %.1f MiB",
		f(ours), f(mkfs), f(ours)/f(mkfs), f(layers), f(ours)/f(layers), f(casync), f(ours)/f(casync), f(registry))
	b.ReportMetric(f(ours), "MiB")
}

func f(n int64) float64 { return float64(n) / mib }

func storedBytes(b *testing.B, thaw, state string) int64 {
	o := timed(b, thaw, "--state", state, "df", "--json")
	lines := bufio.NewScanner(bytes.NewReader(o.stdout))
	for lines.Scan() {
		var row struct {
			Kind   string `json:"kind"`
			Stored int64  `json:"stored_bytes"`
		}
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			b.Fatal(err)
		}
		if row.Kind == "root" {
			return row.Stored
		}
	}
	b.Fatal("df names no root")
	return 0
}

func fileSize(b *testing.B, path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	return info.Size()
}

// gunzip unpacks a layer to a file.
func gunzip(b *testing.B, blob string) string {
	in, err := os.Open(blob)
	if err != nil {
		b.Fatal(err)
	}
	defer in.Close()
	z, err := gzip.NewReader(in)
	if err != nil {
		b.Fatal(err)
	}
	out, err := os.Create(filepath.Join(b.TempDir(), "layer.tar"))
	if err != nil {
		b.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, z); err != nil {
		b.Fatal(err)
	}
	return out.Name()
}

// contentDefined gives the bytes of a file's chunks that are not in ids yet, as
// casync cuts them, uncompressed. Its index is a header of 48 bytes, a table
// header of 16, and items of end offset (8, little-endian) and id (32).
func contentDefined(b *testing.B, path string, ids map[[32]byte]bool) (fresh int64) {
	dir := b.TempDir()
	index := filepath.Join(dir, "x.caibx")
	timed(b, "casync", "make", "--chunk-size="+strconv.Itoa(512<<10), "--store="+filepath.Join(dir, "store.castr"), index, path)
	data, err := os.ReadFile(index)
	if err != nil {
		b.Fatal(err)
	}
	begin := uint64(0)
	for at := 64; at+40 <= len(data)-40; at += 40 { // the last item is the table's tail
		end, id := binary.LittleEndian.Uint64(data[at:]), [32]byte(data[at+8:at+40])
		if !ids[id] {
			ids[id] = true
			fresh += int64(end - begin)
		}
		begin = end
	}
	if int64(begin) != fileSize(b, path) {
		b.Fatalf("casync's index ends at %d of %d", begin, fileSize(b, path))
	}
	if err := os.RemoveAll(dir); err != nil {
		b.Fatal(err)
	}
	return fresh
}

// mkfsBytes unpacks each image, makes a file system of it with mkfs.ext4, and
// gives the bytes of different 512 KiB pieces, cut like ours to their last
// non-zero 64 KiB.
func mkfsBytes(b *testing.B) (total int64) {
	seen := map[[32]byte]bool{}
	for _, name := range dedupImages {
		dir := b.TempDir()
		rootfs, img := filepath.Join(dir, "rootfs"), filepath.Join(dir, "img")
		timed(b, "umoci", "raw", "unpack", "--image", corpus(b, name)+":latest", rootfs)
		timed(b, "mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "^has_journal", "-U", "00000000-0000-0000-0000-000000000001",
			"-E", "hash_seed=00000000-0000-0000-0000-000000000002,lazy_itable_init=0", "-d", rootfs, img, "4G")
		total += pieces(b, img, seen)
		if out, err := exec.Command("rm", "-rf", dir).CombinedOutput(); err != nil {
			b.Fatalf("%v %s", err, out)
		}
	}
	return total
}

func pieces(b *testing.B, img string, seen map[[32]byte]bool) (fresh int64) {
	file, err := os.Open(img)
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	piece, zeros := make([]byte, 512<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(file, piece)
		if err == io.EOF {
			return fresh
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			b.Fatal(err)
		}
		rest := piece[:n]
		for len(rest) > 0 && bytes.Equal(rest[len(rest)-len(zeros):], zeros) {
			rest = rest[:len(rest)-len(zeros)]
		}
		if sum := sha256.Sum256(rest); len(rest) > 0 && !seen[sum] {
			seen[sum] = true
			fresh += int64(len(rest))
		}
	}
}
