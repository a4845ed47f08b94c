// Package reader_test holds reader.mjs, a reader written from docs/formats.md
// alone, to what the program writes and exports: the page says enough, and the
// program does what it says.
package reader_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	_ "thaw/convert" // what the program is made of: see watch
	"thaw/internal/testoci"
)

// needNode wants the language that the reader is written in. Whoever has none
// is told loudly; where all is to run, it is missing.
func needNode(t *testing.T) {
	t.Helper()
	out, err := exec.Command("node", "--version").CombinedOutput()
	if err == nil {
		t.Logf("node %s", bytes.TrimSpace(out))
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("no node (%v): apt-get install nodejs", err)
	}
	t.Skipf("SKIPPED: the reader of docs/formats.md is tested with node, which is missing (%v): apt-get install nodejs", err)
}

// watch opens what only other processes read, so that go test runs this again
// when it changes, instead of giving an old result. What the program imports it
// knows from the import above.
func watch(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob("../../cmd/thaw/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("the program has %d files, %v", len(files), err)
	}
	for _, path := range append(files, "reader.mjs") {
		if _, err := os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReader builds the program once for all who need it.
func TestReader(t *testing.T) {
	needNode(t)
	watch(t)
	thaw := filepath.Join(t.TempDir(), "thaw")
	if text, err := exec.Command("go", "build", "-o", thaw, "thaw/cmd/thaw").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	t.Run("reads what thaw exports", func(t *testing.T) { testExports(t, newWorld(t, thaw)) })
	t.Run("refuses damage", func(t *testing.T) { testDamage(t, newWorld(t, thaw)) })
	t.Run("refuses others", func(t *testing.T) { testOthers(t, newWorld(t, thaw)) })
	t.Run("reads the page's image", func(t *testing.T) { testPage(t, newWorld(t, thaw)) })
}

// world is a state folder, the program that fills it, and a folder to read to.
type world struct {
	thaw, state, out string
}

func newWorld(t *testing.T, thaw string) world {
	t.Helper()
	return world{thaw, filepath.Join(t.TempDir(), "state"), t.TempDir()}
}

// run runs the program on the state.
func (w world) run(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command(w.thaw, append(args, "--state", w.state)...)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("thaw %s: %v: %s", strings.Join(args, " "), err, text)
	}
}

// read runs the reader. The file is there only if its error is nil; else text
// is what it said.
func (w world) read(tenant, name string) (file, text string, err error) {
	file = filepath.Join(w.out, "device")
	var stderr strings.Builder
	cmd := exec.Command("node", "reader.mjs", w.state, tenant, name, file)
	cmd.Stderr = &stderr
	err = cmd.Run()
	return file, stderr.String(), err
}

// image is small, but has all sorts of chunks: full ones, trimmed ones, zero
// ones between others.
func image(t *testing.T) string {
	t.Helper()
	entries := []testoci.Entry{
		testoci.Dir("usr"),
		testoci.File("usr/noise", testoci.Noise(1, 3<<20+4097)),
		testoci.File("usr/holes", append(make([]byte, 5<<20), "end"...)),
	}
	for i := range 200 {
		entries = append(entries, testoci.File(fmt.Sprintf("usr/small%03d", i), testoci.Noise(uint64(i), 50*i)))
	}
	return testoci.Layout(t, filepath.Join(t.TempDir(), "small"), nil,
		testoci.Tar(t, entries...), testoci.Tar(t, testoci.File("app", testoci.Noise(2, 700_000))))
}

func testExports(t *testing.T, w world) {
	source := image(t)
	for _, c := range []struct {
		tenant, name string
		flags        []string
	}{
		{"default", "small", nil},
		{"default", "team/app:v1", []string{"--chunk-size", "64KiB"}},
		{"other", "2m@x", []string{"--chunk-size", "2MiB", "--free", "0"}},
		{"other", "own", []string{"--private"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.run(t, append([]string{"convert", source, "--tenant", c.tenant, "--name", c.name}, c.flags...)...)
			got, text, err := w.read(c.tenant, c.name)
			if err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			want := filepath.Join(w.out, "export")
			w.run(t, "export", "--tenant", c.tenant, c.name, want)
			same(t, got, want)
			sparse(t, got)
			for _, file := range []string{got, want} {
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// same compares files as long as a device, of which nearly all is holes.
func same(t *testing.T, got, want string) {
	t.Helper()
	var files [2]*os.File
	var pieces [2][1 << 16]byte
	for i, path := range []string{got, want} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	for at := int64(0); ; at += 1 << 16 {
		at = min(nextData(t, files[0], at), nextData(t, files[1], at))
		n, err := files[0].ReadAt(pieces[0][:], at)
		m, werr := files[1].ReadAt(pieces[1][:], at)
		if !bytes.Equal(pieces[0][:n], pieces[1][:m]) || !errors.Is(werr, err) {
			t.Fatalf("at byte %d the reader has %d bytes (%v), the export %d, or other ones (%v)", at, n, err, m, werr)
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// nextData gives the offset of the first byte from at on that is not in a hole,
// or the file's length.
func nextData(t *testing.T, f *os.File, at int64) int64 {
	t.Helper()
	next, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		next, err = f.Seek(0, io.SeekEnd)
	}
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// sparse wants a device that takes little more than its chunks.
func sparse(t *testing.T, path string) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if taken := st.Blocks * 512; taken == 0 || taken > 32<<20 {
		t.Errorf("the device has %d bytes and takes %d of the disk", st.Size, taken)
	}
}

// one gives the single file that a pattern below the state matches.
func (w world) one(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(w.state, pattern))
	if err != nil || len(found) == 0 {
		t.Fatalf("%s: %d files, %v", pattern, len(found), err)
	}
	return found[0]
}

// parts gives where a manifest's sealed part and its envelope start: §6.1.
func parts(manifest []byte) (sealed, envelope int) {
	sealed = 68 + int(binary.BigEndian.Uint16(manifest[14:])) + 40*int(binary.BigEndian.Uint32(manifest[32:]))
	return sealed, sealed + int(binary.BigEndian.Uint64(manifest[24:]))
}

// flip is a change of one bit: at an offset, from the end if it is negative.
func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte {
		b[(at+len(b))%len(b)] ^= 1
		return b
	}
}

// anotherDigit changes one digit of base64 into another: a flipped bit may make
// it none.
func anotherDigit(at int) func([]byte) []byte {
	return func(b []byte) []byte {
		c := &b[(at+len(b))%len(b)]
		if *c == 'A' {
			*c = 'B'
		} else {
			*c = 'A'
		}
		return b
	}
}

// flipIn is a change of one bit behind the start of a manifest's part.
func flipIn(part func(sealed, envelope int) int) func([]byte) []byte {
	return func(b []byte) []byte { return flip(part(parts(b)))(b) }
}

func cut(b []byte) []byte    { return b[:len(b)-1] }
func longer(b []byte) []byte { return append(b, 0) }
func gone([]byte) []byte     { return nil }

// other is a key, or a record of what its place does not hold.
func other(text string) func([]byte) []byte {
	return func([]byte) []byte { return []byte(text) }
}

func testDamage(t *testing.T, w world) {
	w.run(t, "convert", image(t), "--name", "app")
	const (
		key      = "keys/default"
		record   = "origin/names/default/app/*1"
		manifest = "origin/roots/r1/manifests/default/*"
		chunk    = "origin/roots/r1/chunks/*/*"
	)
	for _, c := range []struct {
		about, file string
		change      func([]byte) []byte
		outcome     string
	}{
		{"chunk flipped", chunk, flip(1000), "corrupt: chunk .*name"},
		{"chunk cut", chunk, cut, "corrupt: chunk .*the manifest says"},
		{"chunk longer", chunk, longer, "corrupt: chunk .*the manifest says"},
		{"chunk gone", chunk, gone, "not found: chunk"},
		{"readable part flipped", manifest, flip(40), "corrupt: .*not the one of this id"},
		{"manifest newer", manifest, flip(8), "newer: "},
		{"sealed part flipped", manifest, flipIn(func(sealed, _ int) int { return sealed }), "corrupt: .*sealed part"},
		{"tag flipped", manifest, flipIn(func(_, envelope int) int { return envelope - 1 }), "corrupt: .*sealed part"},
		{"URL flipped", manifest, flipIn(func(_, envelope int) int { return envelope + 2 }), "corrupt: .*URL"},
		{"envelope flipped", manifest, flip(-1), "refused: the envelope"},
		{"manifest cut", manifest, cut, "corrupt: "},
		{"manifest longer", manifest, longer, "corrupt: "},
		{"manifest gone", manifest, gone, "not found: manifest"},
		{"record not JSON", record, flip(0), "corrupt: name app"},
		{"record's image flipped", record, flip(len(`{"version":1,"image":"`)), "corrupt: name app"},
		{"record's seal changed", record, anotherDigit(len(`","seal":"`) - 60), "refused: name app"},
		{"record longer", record, longer, "corrupt: name app"},
		{"record gone", record, gone, "not found: name app"},
		{"another key", key, other(strings.Repeat("7e", 32) + "\n"), "refused: name app"},
		{"key cut", key, cut, "corrupt: key file"},
		{"key gone", key, gone, "not found: key file"},
	} {
		t.Run(c.about, func(t *testing.T) {
			file := w.one(t, c.file)
			good, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			put(t, file, c.change(bytes.Clone(good)))
			defer put(t, file, good)
			w.refused(t, "app", c.outcome)
		})
	}
	if file, text, err := w.read("default", "app"); err != nil {
		t.Errorf("with everything back in its place: %v: %s", err, text)
	} else if err := os.Remove(file); err != nil {
		t.Error(err)
	}
}

// put writes a file anew, or removes it if b is nil.
func put(t *testing.T, path string, b []byte) {
	t.Helper()
	err := os.Remove(path)
	if b != nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// refused wants the reader to fail with one line, and to leave nothing.
func (w world) refused(t *testing.T, name, outcome string) {
	t.Helper()
	_, text, err := w.read("default", name)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("%v, want exit status 1", err)
	}
	if !regexp.MustCompile("^reader: " + outcome + ".*\n$").MatchString(text) {
		t.Errorf("says %q, want %s in one line", text, outcome)
	}
	left, err := os.ReadDir(w.out)
	if err != nil || len(left) != 0 {
		t.Errorf("leaves %v, %v", left, err)
	}
}

// testOthers is about what is no damage of one file: other names, other
// records, open keys.
func testOthers(t *testing.T, w world) {
	source := image(t)
	w.run(t, "convert", source, "--name", "app")
	w.run(t, "convert", source, "--name", "twin", "--free", "1GiB")
	names := filepath.Join(w.state, "origin", "names", "default")
	twin, err := os.ReadFile(w.one(t, "origin/names/default/twin/*1"))
	if err != nil {
		t.Fatal(err)
	}
	w.refused(t, "absent", "not found: name absent")
	w.refused(t, "../app", "not found: name")

	second := filepath.Join(names, "app", "00000000000000000002")
	put(t, second, twin) // sealed by the tenant, for another name
	w.refused(t, "app", "corrupt: name app: .*another record")
	put(t, second, []byte("{}"))
	w.refused(t, "app", "corrupt: name app") // and never takes the older one
	put(t, second, nil)

	key := w.one(t, "keys/default")
	for _, c := range []struct {
		path       string
		open, shut os.FileMode
	}{{key, 0o640, 0o600}, {filepath.Dir(key), 0o770, 0o700}} {
		if err := os.Chmod(c.path, c.open); err != nil {
			t.Fatal(err)
		}
		w.refused(t, "app", "unsafe: ")
		if err := os.Chmod(c.path, c.shut); err != nil {
			t.Fatal(err)
		}
	}
	w.run(t, "rm", "app")
	w.refused(t, "app", "not found: name app: removed")
}

// testPage reads the page's own image (§10), made of what the page shows of it.
func testPage(t *testing.T, w world) {
	page, err := os.ReadFile("../formats.md")
	if err != nil {
		t.Fatal(err)
	}
	const image = "63a632c734b840b423ec872f2fa33a329dfed863851e586026c5575d28549dfd"
	record := regexp.MustCompile(`(?s)\{"version":1,"image":"` + image + `.*?"\}`).Find(page)
	dump := regexp.MustCompile(`manifest, 379 bytes:.*\n((?: +\d+ ( *[0-9a-f]+)+\n)+)`).FindSubmatch(page)
	if record == nil || dump == nil {
		t.Fatal("the page has no image in §10")
	}
	text := regexp.MustCompile(`(?m)^ +\d+ |\s`).ReplaceAll(dump[1], nil)
	manifest, err := hex.DecodeString(string(text))
	if err != nil || len(manifest) != 379 {
		t.Fatalf("%d bytes of manifest, %v", len(manifest), err)
	}
	for path, data := range map[string][]byte{
		"keys/acme": []byte(strings.Repeat("7e", 32) + "\n"),
		"origin/names/acme/team!app:v1/00000000000000000001":                                         regexp.MustCompile(`\n *`).ReplaceAll(record, nil),
		"origin/roots/r1/manifests/acme/" + image:                                                    manifest,
		"origin/roots/r1/chunks/bb/bbf3f11cb5b43e700273a78d12de55e4a7eab741ed2abf13787a4d2dc832b8ec": {0x25},
	} {
		path = filepath.Join(w.state, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, path, data)
	}
	file, said, err := w.read("acme", "team/app:v1")
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	device, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(device)
	if !bytes.Contains(page, []byte("SHA-256 "+hex.EncodeToString(sum[:]))) || !bytes.Equal(device, append(make([]byte, 65536), 'a')) {
		t.Errorf("a device of %d bytes with SHA-256 %x", len(device), sum)
	}
}
