package builder

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"
)

// zipped makes a package of names and contents. A name that ends in "@" is a
// link, in "/" a folder, in "*" a program, each without that sign.
func zipped(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for i := 0; i+1 < len(files); i += 2 {
		name := files[i]
		h := &zip.FileHeader{Name: strings.TrimRight(name, "@*"), Method: zip.Deflate, Modified: time.Unix(1_700_000_000, 0)}
		switch {
		case strings.HasSuffix(name, "@"):
			h.SetMode(fs.ModeSymlink | 0o777)
		case strings.HasSuffix(name, "*"):
			h.SetMode(0o700)
		default:
			h.SetMode(0o600)
		}
		if strings.HasSuffix(name, "/") {
			h.Method = zip.Store
		}
		f, err := w.CreateHeader(h)
		if err == nil {
			_, err = io.WriteString(f, files[i+1])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func packBytes(ctx context.Context, b []byte) (*packed, []byte, error) {
	var out bytes.Buffer
	p, err := packZip(ctx, bytes.NewReader(b), int64(len(b)), &out)
	return p, out.Bytes(), err
}

// list shows a tar, an entry a line.
func list(t *testing.T, b []byte) string {
	t.Helper()
	var s strings.Builder
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return s.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&s, "%c %o %d %s %s%s\n", h.Typeflag, h.Mode, h.ModTime.Unix(), h.Name, h.Linkname, data)
	}
}

func TestPackZip(t *testing.T) {
	p, b, err := packBytes(t.Context(), zipped(t, "lib/b.py", "B", "run*", "R", "link@", "lib/b.py", "bootstrap", "X", "lib/", "", "./", "", "deep/er/f", "F"))
	if err != nil {
		t.Fatal(err)
	}
	want := `0 755 1700000000 var/task/bootstrap X
5 755 315532800 var/task/deep/ 
5 755 315532800 var/task/deep/er/ 
0 644 1700000000 var/task/deep/er/f F
5 755 1700000000 var/task/lib/ 
0 644 1700000000 var/task/lib/b.py B
2 777 1700000000 var/task/link lib/b.py
0 755 1700000000 var/task/run R
`
	if got := list(t, b); got != want {
		t.Errorf("got\n%s", got)
	}
	if !p.names["bootstrap"] || p.size != int64(len(b)) || p.diffID != digestOfBytes(b) {
		t.Errorf("got %+v", p)
	}
	// Another order gives the same.
	_, again, err := packBytes(t.Context(), zipped(t, "deep/er/f", "F", "bootstrap", "X", "lib/", "", "link@", "lib/b.py", "run*", "R", "lib/b.py", "B"))
	if err != nil || !bytes.Equal(again, b) {
		t.Errorf("in another order: %v\n%s", err, list(t, again))
	}
}

func TestBadZips(t *testing.T) {
	device := func() []byte {
		var b bytes.Buffer
		w := zip.NewWriter(&b)
		h := &zip.FileHeader{Name: "null"}
		h.SetMode(fs.ModeDevice | fs.ModeCharDevice | 0o666)
		_, err := w.CreateHeader(h)
		if err = errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}()
	bomb := func(size uint64) []byte { // says that it has so many bytes
		var b bytes.Buffer
		w := zip.NewWriter(&b)
		f, err := w.CreateRaw(&zip.FileHeader{Name: "zeros", Method: zip.Deflate, UncompressedSize64: size, CompressedSize64: 2})
		if err == nil {
			_, err = f.Write([]byte{3, 0})
		}
		if err = errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	one := zipped(t, "name.txt", strings.Repeat("content ", 100))
	badSum := bytes.Clone(one)
	badSum[bytes.LastIndex(badSum, []byte("PK\x01\x02"))+16]++
	for what, c := range map[string]struct {
		zip  []byte
		says string
	}{
		"no zip":            {[]byte("hello"), "no whole zip"},
		"empty":             {nil, "no whole zip"},
		"cut":               {one[:len(one)-10], "no whole zip"},
		"traversal":         {zipped(t, "a/../../etc/passwd", "x"), "leads out"},
		"parent":            {zipped(t, "..", "x"), "leads out"},
		"absolute":          {zipped(t, "/etc/passwd", "x"), "absolute"},
		"backslash":         {zipped(t, `a\b`, "x"), "backslash"},
		"no UTF-8":          {zipped(t, "a\xff", "x"), "UTF-8"},
		"long name":         {zipped(t, strings.Repeat("a/", 2100)+"b", "x"), "too long"},
		"long part":         {zipped(t, strings.Repeat("a", 256), "x"), "too long"},
		"twice":             {zipped(t, "a", "x", "a", "y"), "twice"},
		"twice in disguise": {zipped(t, "a/b", "x", "a//b", "y"), "twice"},
		"below a file":      {zipped(t, "a", "x", "a/b", "y"), "below"},
		"below a link":      {zipped(t, "a@", "/etc", "a/passwd", "y"), "below"},
		"link to nowhere":   {zipped(t, "a@", ""), "no path"},
		"long link":         {zipped(t, "a@", strings.Repeat("x", 5000)), "no path"},
		"device":            {device, "neither file"},
		"damaged":           {badSum, "damaged"},
		"bomb":              {bomb(MaxUnzipped + 1), "together"},
		"huge bomb":         {bomb(1 << 63), "together"},
		"false bomb":        {bomb(MaxUnzipped), "damaged"},
	} {
		_, _, err := packBytes(t.Context(), c.zip)
		var no *Refusal
		if !errors.As(err, &no) || no.Code != InvalidImage || !strings.Contains(no.Reason, c.says) || len(no.Reason) > 400 {
			t.Errorf("%s: %v, want %q", what, err, c.says)
		}
	}
}

// TestFalseSizes has a package whose directory understates what is in it.
func TestFalseSizes(t *testing.T) {
	b := zipped(t, "f", strings.Repeat("x", 1000))
	at := bytes.LastIndex(b, []byte("PK\x01\x02"))
	b[at+24], b[at+25] = 10, 0 // uncompressed size
	if _, _, err := packBytes(t.Context(), b); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("got %v", err)
	}
	b[at+24], b[at+25] = 0xff, 0xff
	if _, _, err := packBytes(t.Context(), b); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("got %v", err)
	}
	b[at+8] |= 1 // encrypted
	if _, _, err := packBytes(t.Context(), b); err == nil || !strings.Contains(err.Error(), "encrypted") {
		t.Errorf("got %v", err)
	}
}

func TestManyEntries(t *testing.T) {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for i := range maxEntries + 1 {
		if _, err := w.CreateHeader(&zip.FileHeader{Name: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := packBytes(t.Context(), b.Bytes()); err == nil || !strings.Contains(err.Error(), "more than 100000 files") {
		t.Errorf("got %v", err)
	}
	if _, err := readZip(bytes.NewReader(nil), MaxZipped+1); err == nil || !strings.Contains(err.Error(), "more than 313344000") {
		t.Errorf("got %v", err)
	}
	// So many headers that the reader should not see them at all.
	flood := bytes.Repeat([]byte("PK\x01\x02"), maxHeaders+1)
	if n, err := countHeaders(bytes.NewReader(flood)); n != maxHeaders+1 || err != nil {
		t.Errorf("counted %d, %v", n, err)
	}
	if _, err := readZip(bytes.NewReader(flood), int64(len(flood))); err == nil || !strings.Contains(err.Error(), "files") {
		t.Errorf("got %v", err)
	}
}

func TestPackZipStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := packBytes(ctx, zipped(t, "a", "b")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skipf("NOT TESTED: a full disk: %v", err)
	}
	defer full.Close()
	b := zipped(t, "a", "b")
	var no *Refusal
	if _, err := packZip(t.Context(), bytes.NewReader(b), int64(len(b)), full); err == nil || errors.As(err, &no) {
		t.Errorf("our full disk is the package's fault: %v", err)
	}
}

func FuzzPackZip(f *testing.F) {
	f.Add(zipped(f, "bootstrap*", "x", "a/b", "y", "l@", "a"))
	f.Add(zipped(f, "../x", "x"))
	f.Add([]byte("PK\x05\x06"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, out, err := packBytes(t.Context(), b)
		if err != nil {
			return
		}
		seen := map[string]byte{}
		r := tar.NewReader(bytes.NewReader(out))
		for {
			h, err := r.Next()
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			name := strings.TrimSuffix(h.Name, "/")
			if _, twice := seen[name]; twice || !strings.HasPrefix(name, taskRoot) || strings.Contains("/"+name+"/", "/../") {
				t.Errorf("%q", h.Name)
			}
			seen[name] = h.Typeflag
		}
	})
}
