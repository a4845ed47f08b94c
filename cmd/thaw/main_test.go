package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"thaw/chunk"
	"thaw/keys"
	"thaw/manifest"
)

func TestSizes(t *testing.T) {
	for text, want := range map[string]byteSize{
		"0": 0, "4096": 4096, "512KiB": 512 << 10, "2MiB": 2 << 20, " 3GiB ": 3 << 30, "1TiB": 1 << 40, "4611686018427387904": 1 << 62, "4194304TiB": 1 << 62,
	} {
		var b byteSize
		if err := b.UnmarshalText([]byte(text)); err != nil || b != want {
			t.Errorf("%q: %d, %v", text, b, err)
		}
		var again byteSize
		if err := again.UnmarshalText([]byte(b.String())); err != nil || again != b {
			t.Errorf("%q prints as %s: %d, %v", text, b, again, err)
		}
	}
	for _, text := range []string{"", "KiB", "-1", "+1", "1.5MiB", "1KB", "1 KiB", "0x10", "4611686018427387905", "4194305TiB", "99999999999999999999"} {
		var b byteSize
		if err := b.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken for %d", text, b)
		}
	}
}

// Verbs that run for days say when they warned, in UTC, unless somebody looks on.
func TestDated(t *testing.T) {
	for dated, want := range map[bool]string{
		true: `^time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=WARN msg=x$`, false: `^level=WARN msg=x$`,
	} {
		var b bytes.Buffer
		g := &Globals{LogFormat: "text", stderr: &b, dated: dated}
		g.logger().Warn("x")
		if line := strings.TrimSpace(b.String()); !regexp.MustCompile(want).MatchString(line) {
			t.Errorf("%t: %q", dated, line)
		}
	}
	root, _ := commandLine(nil)
	parser, err := kong.New(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range lasting {
		if !slices.ContainsFunc(parser.Model.Children, func(n *kong.Node) bool { return n.Name == verb }) {
			t.Errorf("there is no verb %s", verb)
		}
	}
}

func TestStatus(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name string
		ctx  context.Context
		err  error
		code int
		says string
	}{
		{"done", t.Context(), nil, 0, ""},
		{"done in spite of a signal", ended, nil, 0, ""},
		{"damaged", t.Context(), fmt.Errorf("x: %w", errDamaged), 3, ""},
		{"interrupted", ended, errors.New("any"), 130, "thaw: interrupted\n"},
		{"interrupted while storing", ended, fmt.Errorf("x: %w", errConverting), 130, "thaw: interrupted; what is stored stays for the next try\n"},
		{"two lines", t.Context(), errors.New("a\r\n\nb\n"), 1, "thaw: a; b\n"},
		{"refused", t.Context(), fmt.Errorf("x: %w", keys.ErrRefused), 1, "--key, --tenant and --origin"},
	} {
		var b bytes.Buffer
		if code := status(c.ctx, &b, c.err); code != c.code || !strings.Contains(b.String(), c.says) || strings.Count(b.String(), "\n") > 1 {
			t.Errorf("%s: %d, %q", c.name, code, b.String())
		}
	}
}

// sealedSource holds the chunks of a device in memory, and calls got before
// each is given.
type sealedSource struct {
	chunks map[chunk.Name][]byte
	got    func()
}

func (s sealedSource) Get(_ context.Context, name chunk.Name) ([]byte, error) {
	s.got()
	if data, ok := s.chunks[name]; ok {
		return bytes.Clone(data), nil // the caller decrypts in place
	}
	return nil, chunk.ErrNotFound
}

// device gives a device of n chunks of different bytes.
func device(n int) (*manifest.Manifest, sealedSource) {
	m := &manifest.Manifest{Kind: manifest.Image, Size: int64(n * chunk.MinSize), ChunkSize: chunk.MinSize}
	src := sealedSource{map[chunk.Name][]byte{}, func() {}}
	for i := range n {
		s := chunk.Seal(chunk.Salt{}, bytes.Repeat([]byte{byte(i + 1)}, chunk.MinSize))
		src.chunks[s.Name] = s.Data
		m.Chunks = append(m.Chunks, manifest.Entry{Index: uint32(i), Size: uint32(len(s.Data)), Name: s.Name, Key: s.Key})
	}
	return m, src
}

// The folder's driver does not look at the context, so nothing but the writer
// notices that chunks were left out.
func TestCancelledExportIsNoExport(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	m, src := device(100)
	src.got = cancel
	f, err := os.Create(filepath.Join(t.TempDir(), "device"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := writeDevice(ctx, f, m, src); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

func TestExportRefusesWhatIsNotTheManifests(t *testing.T) {
	m, src := device(3)
	f, err := os.Create(filepath.Join(t.TempDir(), "device"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := writeDevice(t.Context(), f, m, src); err != nil {
		t.Fatal(err)
	}
	short := src.chunks[m.Chunks[1].Name]
	src.chunks[m.Chunks[1].Name] = short[:100]
	if err := writeDevice(t.Context(), f, m, src); !errors.Is(err, chunk.ErrCorrupt) || !strings.Contains(err.Error(), "chunk 1") {
		t.Fatalf("a short chunk: %v", err)
	}
	delete(src.chunks, m.Chunks[1].Name)
	if err := writeDevice(t.Context(), f, m, src); !errors.Is(err, chunk.ErrNotFound) || !strings.Contains(err.Error(), "chunk 1") {
		t.Fatalf("a missing chunk: %v", err)
	}
}

// Both kinds of file get their name in the same ways, and leave none.
func TestExportFile(t *testing.T) {
	for kind, open := range map[string]func(string) (*exportFile, error){"unnamed": newExportFile, "named": newNamedFile} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "device")
			write := func(text string, finish func(*exportFile, string) error) error {
				f, err := open(path)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := f.WriteString(text); err != nil {
					t.Fatal(err)
				}
				err = finish(f, path)
				if cerr := f.close(); cerr != nil {
					t.Fatal(cerr)
				}
				return err
			}
			give := func(*exportFile, string) error { return nil }
			for i, step := range []struct {
				finish func(*exportFile, string) error
				fails  error
				want   string
			}{
				{give, nil, ""},
				{(*exportFile).link, nil, "1"},
				{(*exportFile).link, os.ErrExist, "1"},
				{(*exportFile).replace, nil, "3"},
				{give, nil, "3"},
			} {
				if err := write(fmt.Sprint(i), step.finish); !errors.Is(err, step.fails) {
					t.Fatalf("step %d: %v", i, err)
				}
				got, _ := os.ReadFile(path) // none is ""
				if string(got) != step.want {
					t.Fatalf("step %d: %q, want %q", i, got, step.want)
				}
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
				t.Fatalf("left: %v, %v", left, err)
			}
		})
	}
}
