package keys

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

const goodKey = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n"

// privateDir is a folder that a key may lie in, whatever the umask.
func privateDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// TestFileGolden opens a value that another implementation wrapped.
func TestFileGolden(t *testing.T) {
	path := filepath.Join(privateDir(t), "a")
	write(t, path, goodKey, 0o600)
	wrapped, err := hex.DecodeString("676f6c64656e206e6f6e6365724fc78bfc16a1ba39f3b5149e3159efbdf5cab59feb000f67af")
	if err != nil {
		t.Fatal(err)
	}
	k := mustOpen(t, "file://"+path)
	if got, err := k.Unwrap(t.Context(), wrapped); err != nil || string(got) != "a data key" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestFileIsMadeOnce(t *testing.T) {
	top := t.TempDir()
	path := filepath.Join(top, "state", "keys", "a b%")
	k := mustOpen(t, "file://"+top+"/state/keys/a%20b%25")
	if k.URL() != "file://"+top+"/state/keys/a%20b%25" {
		t.Errorf("URL %s", k.URL())
	}
	first, err := os.ReadFile(path)
	if err != nil || !decodeKey(make([]byte, keySize), first) {
		t.Fatalf("made %q, %v", first, err)
	}
	for p, want := range map[string]fs.FileMode{path: 0o600, filepath.Dir(path): 0o700, filepath.Join(top, "state"): 0o700} {
		if info, err := os.Stat(p); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %o", p, info.Mode(), err, want)
		}
	}
	mustOpen(t, k.URL())
	if again, err := os.ReadFile(path); err != nil || !bytes.Equal(first, again) {
		t.Error("the second Open changed the key")
	}
	mustOpen(t, "file://"+filepath.Dir(path)+"/other")
	if other, err := os.ReadFile(filepath.Dir(path) + "/other"); err != nil || bytes.Equal(first, other) {
		t.Error("two tenants have one key")
	}
	checkNoTemps(t, filepath.Dir(path), 2)
}

func checkNoTemps(t *testing.T, dir string, want int) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) != want {
		t.Errorf("%v are left in the folder, %v; want %d files", left, err, want)
	}
}

func TestOpenExisting(t *testing.T) {
	dir := privateDir(t)
	path := filepath.Join(dir, "a")
	if _, err := OpenExisting(t.Context(), "file://"+path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "backup") {
		t.Errorf("%v, want what to do", err)
	}
	checkNoTemps(t, dir, 0)
	mustOpen(t, "file://"+path)
	if _, err := OpenExisting(t.Context(), "file://"+path); err != nil {
		t.Error(err)
	}
}

func TestFileRefused(t *testing.T) {
	for about, c := range map[string]struct {
		text string
		mode fs.FileMode
		want string
	}{
		"group reads":       {goodKey, 0o640, "chmod 600"},
		"others read":       {goodKey, 0o604, "chmod 600"},
		"group writes":      {goodKey, 0o620, "chmod 600"},
		"all":               {goodKey, 0o777, "chmod 600"},
		"empty":             {"", 0o600, "backup"},
		"short":             {goodKey[1:], 0o600, "backup"},
		"long":              {"0" + goodKey, 0o600, "backup"},
		"no newline":        {goodKey[:64], 0o600, "backup"},
		"two newlines":      {goodKey + "\n", 0o600, "backup"},
		"raw bytes":         {strings.Repeat("\xff", 32), 0o600, "backup"},
		"upper case":        {strings.ToUpper(goodKey), 0o600, "backup"},
		"no hex":            {strings.Repeat("g", 64) + "\n", 0o600, "backup"},
		"very long":         {strings.Repeat(goodKey, 1000), 0o600, "backup"},
		"windows line end":  {goodKey[:64] + "\r\n", 0o600, "backup"},
		"byte order mark":   {"\ufeff" + goodKey[:61] + "\n", 0o600, "backup"},
		"read-only is fine": {goodKey, 0o400, ""},
	} {
		path := filepath.Join(privateDir(t), "a")
		write(t, path, c.text, c.mode)
		_, err := Open(t.Context(), "file://"+path)
		checkSays(t, about, err, c.want)
		if err != nil && len(c.text) > 60 && strings.Contains(err.Error(), c.text[:8]) {
			t.Errorf("%s: the refusal shows the key: %v", about, err)
		}
		if now, _ := os.ReadFile(path); string(now) != c.text {
			t.Errorf("%s: the file was changed", about)
		}
	}
}

// checkSays wants one line with that word in it, or no error for none.
func checkSays(t *testing.T, about string, err error, want string) {
	t.Helper()
	if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n")) {
		t.Errorf("%s: %v, want one line with %q", about, err, want)
	}
}

func TestFilePlaces(t *testing.T) {
	for about, c := range map[string]struct {
		setup func(t *testing.T, dir, path string) error
		want  string
	}{
		"a folder": {func(_ *testing.T, _, path string) error { return os.Mkdir(path, 0o700) }, "folder"},
		"a pipe":   {func(_ *testing.T, _, path string) error { return syscall.Mkfifo(path, 0o600) }, "no regular file"},
		"link to a key": {func(t *testing.T, dir, path string) error {
			write(t, dir+"/real", goodKey, 0o600)
			return os.Symlink("real", path)
		}, ""},
		"link to a leak": {func(t *testing.T, dir, path string) error {
			write(t, dir+"/real", goodKey, 0o644)
			return os.Symlink("real", path)
		}, "chmod 600"},
		"link to none":   {func(_ *testing.T, _, path string) error { return os.Symlink("gone", path) }, "link to nothing"},
		"link to itself": {func(_ *testing.T, _, path string) error { return os.Symlink("a", path) }, "symbolic links"},
		"open folder":    {func(_ *testing.T, dir, _ string) error { return os.Chmod(dir, 0o777) }, "chmod 700"},
		"sticky folder":  {func(_ *testing.T, dir, _ string) error { return os.Chmod(dir, 0o777|fs.ModeSticky) }, "chmod 700"},
		"group's folder": {func(_ *testing.T, dir, _ string) error { return os.Chmod(dir, 0o770) }, "chmod 700"},
		"open folder, key is there": {func(t *testing.T, dir, path string) error {
			write(t, path, goodKey, 0o600)
			return os.Chmod(dir, 0o777)
		}, "chmod 700"},
		"readable folder":    {func(_ *testing.T, dir, _ string) error { return os.Chmod(dir, 0o755) }, ""},
		"folder is a file":   {func(t *testing.T, dir, _ string) error { _ = os.Remove(dir); write(t, dir, "x", 0o600); return nil }, "not a directory"},
		"no folder at all":   {func(_ *testing.T, dir, _ string) error { return os.Remove(dir) }, ""},
		"leftover of a kill": {func(t *testing.T, dir, _ string) error { write(t, dir+"/.tmp-key-1", goodKey[:10], 0o600); return nil }, ""},
	} {
		dir := privateDir(t)
		path := filepath.Join(dir, "a")
		if err := c.setup(t, dir, path); err != nil {
			t.Fatalf("%s: %v", about, err)
		}
		_, err := Open(t.Context(), "file://"+path)
		checkSays(t, about, err, c.want)
	}
}

func TestTrusted(t *testing.T) {
	for _, c := range []struct {
		owner, self uint32
		want        bool
	}{{1000, 1000, true}, {0, 1000, true}, {1001, 1000, false}, {1001, 0, true}, {0, 0, true}} {
		if trusted(c.owner, c.self) != c.want {
			t.Errorf("owner %d, user %d: want %v", c.owner, c.self, c.want)
		}
	}
}

// makers is how many goroutines, and how many processes, make one key at once.
const makers = 50

func TestManyGoroutinesMakeOneKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "keys")
	var wg sync.WaitGroup
	start := make(chan struct{})
	wrapped := make([][]byte, makers)
	for i := range wrapped {
		wg.Go(func() {
			<-start
			k, err := Open(t.Context(), "file://"+dir+"/a")
			if err != nil {
				t.Error(err)
				return
			}
			if wrapped[i], err = k.Wrap(t.Context(), []byte("agreed")); err != nil {
				t.Error(err)
			}
		})
	}
	close(start)
	wg.Wait()
	checkAgreed(t, dir, wrapped)
}

func checkAgreed(t *testing.T, dir string, wrapped [][]byte) {
	t.Helper()
	k := mustOpen(t, "file://"+dir+"/a")
	for _, w := range wrapped {
		if got, err := k.Unwrap(t.Context(), w); err != nil || string(got) != "agreed" {
			t.Fatalf("one of them has another key: %q, %v", got, err)
		}
	}
	checkNoTemps(t, dir, 1)
}

// TestChild is what the tests below run in processes of their own. It waits
// for its input to end; then it makes one key, or keys until it is killed.
func TestChild(t *testing.T) {
	dir, mode := os.Getenv("KEYS_CHILD_DIR"), os.Getenv("KEYS_CHILD")
	if mode == "" {
		return // run by other tests only
	}
	_, _ = os.Stdin.Read(make([]byte, 1))
	if mode == "one" {
		w, err := mustOpen(t, "file://"+dir+"/a").Wrap(t.Context(), []byte("agreed"))
		fmt.Printf("%x %v\n", w, err)
		return
	}
	for i := 0; ; i++ {
		mustOpen(t, fmt.Sprintf("file://%s/%d", dir, i))
		fmt.Println(i)
	}
}

func child(t *testing.T, mode, dir string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestChild$")
	cmd.Env = append(os.Environ(), "KEYS_CHILD="+mode, "KEYS_CHILD_DIR="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

func TestManyProcessesMakeOneKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "keys")
	cmds, outs := make([]*exec.Cmd, makers), make([]bytes.Buffer, makers)
	gateOut, gate, err := os.Pipe() // all children wait for its end
	if err != nil {
		t.Fatal(err)
	}
	for i := range cmds {
		cmds[i] = child(t, "one", dir)
		cmds[i].Stdin, cmds[i].Stdout = gateOut, &outs[i]
		if err := cmds[i].Start(); err != nil {
			t.Fatal(err)
		}
	}
	gate.Close()
	gateOut.Close()
	var wrapped [][]byte
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Fatalf("child %d: %v: %s", i, err, &outs[i])
		}
		word, _, _ := strings.Cut(outs[i].String(), " ")
		w, err := hex.DecodeString(word)
		if err != nil {
			t.Fatalf("child %d printed %q", i, &outs[i])
		}
		wrapped = append(wrapped, w)
	}
	checkAgreed(t, dir, wrapped)
}

// TestKilledMaker kills processes that make keys without a pause. Whatever has
// a key's name afterwards is a whole key.
func TestKilledMaker(t *testing.T) {
	for round := range 8 {
		dir := privateDir(t)
		cmd := child(t, "many", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; n <= 5*round && lines.Scan(); n++ {
			continue
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		files, err := os.ReadDir(dir)
		if err != nil || len(files) == 0 {
			t.Fatalf("the child made nothing: %v", err)
		}
		for _, f := range files {
			if !strings.HasPrefix(f.Name(), ".tmp-key-") {
				mustOpen(t, "file://"+filepath.Join(dir, f.Name()))
			}
		}
	}
}
