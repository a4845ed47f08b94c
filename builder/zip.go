package builder

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds of a zip package.
const (
	// MaxUnzipped is Lambda's own: bytes of all files of a package together.
	MaxUnzipped = 250 << 20
	// MaxZipped bounds the package as it comes. Lambda bounds only those in
	// requests; others are no longer than what is in them, if it does not compress,
	// and its headers.
	MaxZipped = MaxUnzipped + maxEntries*entryHeaders
	// maxEntries is more than the largest trees of dependencies have.
	maxEntries = 100_000
	// entryHeaders is what a zip file has of an entry besides its contents: two
	// headers and a trailer of 100 bytes together, the name twice, and what tools
	// add. Names of 150 characters fit.
	entryHeaders = 512
	// maxHeaders bounds what the zip reader takes into memory before entries can
	// be counted. Packages may hold others, uncompressed, whose headers look alike.
	maxHeaders = 2 * maxEntries
	// maxPath and maxComponent are Linux's.
	maxPath      = 4095
	maxComponent = 255
	// taskRoot is where a package's files lie.
	taskRoot = "var/task/"
)

// packed is a zip package as a layer.
type packed struct {
	diffID string // of the tar
	size   int64  // of the tar
	names  map[string]bool
}

// refuseZip ends the build of a package that can never be used.
func refuseZip(format string, args ...any) error {
	return Refuse(InvalidImage, "The zip package cannot be used: "+format+".", args...)
}

// packZip writes a package's files as a tar of a layer, below var/task. The same
// files give the same tar, in whatever order the package has them, compressed or
// not: so packages that share files share chunks. Owners are root; files keep
// their times and whether they can be run, and everybody may read them, since
// every function runs as a user of its own. The package is untrusted.
func packZip(ctx context.Context, in io.ReaderAt, size int64, out io.Writer) (*packed, error) {
	entries, err := readZip(in, size)
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	count := &counter{w: io.MultiWriter(out, sum)}
	w := tar.NewWriter(count)
	p := &packed{names: map[string]bool{}}
	left := int64(MaxUnzipped)
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		n, err := e.write(w, left)
		if err != nil {
			return nil, err
		}
		left -= n
		p.names[e.name] = true
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	p.diffID, p.size = "sha256:"+hex.EncodeToString(sum.Sum(nil)), count.n
	return p, nil
}

// counter counts what passes.
type counter struct {
	w io.Writer
	n int64
}

// Write passes p on.
func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// entry is a file, folder or link of a package.
type entry struct {
	name string // clean, relative
	file *zip.File
	kind fs.FileMode // 0, fs.ModeDir or fs.ModeSymlink
}

// readZip gives the entries in order of their names, checked but for their
// contents.
func readZip(in io.ReaderAt, size int64) ([]entry, error) {
	if size > MaxZipped {
		return nil, refuseZip("it has %d bytes, more than %d", size, MaxZipped)
	}
	if n, err := countHeaders(io.NewSectionReader(in, 0, size)); err != nil || n > maxHeaders {
		return nil, errors.Join(err, tooMany(n))
	}
	z, err := zip.NewReader(in, size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return nil, refuseZip("it is no whole zip file")
	}
	if len(z.File) > maxEntries {
		return nil, tooMany(len(z.File))
	}
	entries := make([]entry, 0, len(z.File))
	total := uint64(0)
	for _, f := range z.File {
		e, err := checkEntry(f)
		if err != nil {
			return nil, err
		}
		if e.name == "." {
			continue
		}
		if total += f.UncompressedSize64; f.UncompressedSize64 > MaxUnzipped || total > MaxUnzipped {
			return nil, refuseZip("its files have more than %d bytes together", MaxUnzipped)
		}
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return withFolders(entries)
}

// tooMany refuses a number of entries, if it is one.
func tooMany(n int) error {
	if n <= maxEntries {
		return nil
	}
	return refuseZip("it has more than %d files", maxEntries)
}

// countHeaders counts what looks like an entry's header in the directory at the
// end of a zip file.
func countHeaders(r io.Reader) (int, error) {
	const window = 1 << 20
	header := []byte("PK\x01\x02")
	buf, kept, n := make([]byte, window), 0, 0
	for {
		m, err := io.ReadFull(r, buf[kept:])
		n += bytes.Count(buf[:kept+m], header)
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
			return n, nil
		}
		if err != nil {
			return 0, fmt.Errorf("read zip package: %w", err)
		}
		kept = copy(buf, buf[window-len(header)+1:]) // too short to be counted twice
	}
}

// checkEntry refuses what is no file, folder or link inside the package.
func checkEntry(f *zip.File) (entry, error) {
	name, shown := f.Name, show(f.Name)
	switch {
	case !utf8.ValidString(name) || strings.ContainsAny(name, "\x00\\"):
		return entry{}, refuseZip("the name %s has a backslash or is no UTF-8", shown)
	case strings.HasPrefix(name, "/"), len(name) > maxPath-len(taskRoot):
		return entry{}, refuseZip("the name %s is absolute or too long", shown)
	case f.Flags&1 != 0:
		return entry{}, refuseZip("%s is encrypted", shown)
	case f.Method != zip.Store && f.Method != zip.Deflate:
		return entry{}, refuseZip("%s is compressed by method %d: use deflate", shown, f.Method)
	}
	for part := range strings.SplitSeq(strings.TrimSuffix(name, "/"), "/") {
		if part == ".." || len(part) > maxComponent {
			return entry{}, refuseZip("the name %s leads out of the package, or a part of it is too long", shown)
		}
	}
	e := entry{name: path.Clean(name), file: f}
	switch kind := f.Mode().Type(); {
	case strings.HasSuffix(name, "/") || kind == fs.ModeDir || e.name == ".":
		e.kind = fs.ModeDir
	case kind == 0 || kind == fs.ModeSymlink:
		e.kind = kind
	default:
		return entry{}, refuseZip("%s is neither file, folder nor link", shown)
	}
	return e, nil
}

// show makes a name fit for a sentence.
func show(name string) string {
	if len(name) > 100 {
		name = name[:100] + "…"
	}
	return fmt.Sprintf("%q", strings.ToValidUTF8(name, "?"))
}

// withFolders adds the folders that are only implied, which get a constant time,
// and refuses names that come twice and what lies below something that is no
// folder. The result is in order: a folder before what is in it.
func withFolders(entries []entry) ([]entry, error) {
	kinds := make(map[string]fs.FileMode, len(entries))
	all := make([]entry, 0, len(entries))
	for _, e := range entries {
		if _, twice := kinds[e.name]; twice {
			return nil, refuseZip("it has %s twice", show(e.name))
		}
		kinds[e.name] = e.kind
		all = append(all, e)
	}
	for _, e := range entries {
		for dir := path.Dir(e.name); dir != "."; dir = path.Dir(dir) {
			kind, there := kinds[dir]
			if there && kind != fs.ModeDir {
				return nil, refuseZip("%s lies below something that is no folder", show(e.name))
			}
			if there {
				break // with all above it, or they are still to come
			}
			if len(kinds) > maxEntries {
				return nil, tooMany(len(kinds))
			}
			kinds[dir] = fs.ModeDir
			all = append(all, entry{name: dir, kind: fs.ModeDir})
		}
	}
	slices.SortFunc(all, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return all, nil
}

// earliest is the time of what has none of its own: the first that zip files can
// express.
func earliest() time.Time { return time.Unix(315532800, 0) }

// write adds an entry to the layer, with at most left bytes of content, and
// gives how many it had.
func (e entry) write(w *tar.Writer, left int64) (int64, error) {
	h := &tar.Header{Name: taskRoot + e.name, Mode: 0o644, ModTime: earliest(), Format: tar.FormatPAX}
	if e.file != nil && e.file.Modified.After(earliest()) {
		h.ModTime = e.file.Modified.Truncate(time.Second)
	}
	switch e.kind {
	case fs.ModeDir:
		h.Typeflag, h.Mode, h.Name = tar.TypeDir, 0o755, h.Name+"/"
		return 0, w.WriteHeader(h)
	case fs.ModeSymlink:
		return e.writeLink(w, h)
	}
	h.Typeflag, h.Size = tar.TypeReg, int64(e.file.UncompressedSize64)
	if e.file.Mode()&0o111 != 0 || e.name == "bootstrap" { // zip files from Windows do not say
		h.Mode = 0o755
	}
	if h.Size > left {
		return 0, refuseZip("its files have more than %d bytes together", MaxUnzipped)
	}
	if err := w.WriteHeader(h); err != nil {
		return 0, err
	}
	rc, err := e.file.Open()
	if err != nil {
		return 0, refuseZip("%s cannot be read", show(e.name))
	}
	defer rc.Close()
	n, err := io.Copy(w, rc) // the tar takes no more than it was told
	if errors.Is(err, tar.ErrWriteTooLong) || err == nil && n != h.Size || damaged(err) {
		return n, refuseZip("%s is damaged", show(e.name))
	}
	return n, err
}

// writeLink adds a symbolic link. It is followed by nobody but the function: it
// may lead anywhere.
func (e entry) writeLink(w *tar.Writer, h *tar.Header) (int64, error) {
	rc, err := e.file.Open()
	if err != nil {
		return 0, refuseZip("%s cannot be read", show(e.name))
	}
	defer rc.Close()
	target, err := io.ReadAll(io.LimitReader(rc, maxPath+1))
	if err != nil || len(target) == 0 || len(target) > maxPath || bytes.IndexByte(target, 0) >= 0 || !utf8.Valid(target) {
		return 0, refuseZip("the link %s leads to no path", show(e.name))
	}
	h.Typeflag, h.Mode, h.Linkname = tar.TypeSymlink, 0o777, string(target)
	return int64(len(target)), w.WriteHeader(h)
}

// damaged tells the package's errors from those of our disk.
func damaged(err error) bool {
	var ours *os.PathError
	return err != nil && !errors.As(err, &ours)
}
