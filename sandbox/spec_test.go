package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write the golden files anew")

// plainRoot makes a root file system with a program that a plain user can make.
func plainRoot(t testing.TB) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	write(t, root, "etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nfar:x:1073741824:0::/:\n")
	write(t, root, "etc/group", "root:x:0:\napp:x:1001:\nmore:x:1002:app\n")
	write(t, root, "bin/serve", "#!/bin/serve\n")
	write(t, root, "etc/data", "")
	if err := os.Chmod(filepath.Join(root, "bin/serve"), 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}

const goldenImage = `{"architecture":"amd64","created":null,"config":{"Entrypoint":["serve"],"Cmd":["--all"],"Env":["PATH=/bin","MODE=image","=odd","odd"],
"User":"app","WorkingDir":"srv/data","StopSignal":"SIGQUIT","ExposedPorts":{"80/tcp":{}},"Volumes":null},"rootfs":{"type":"layers"},"history":[{}]}`

func TestGolden(t *testing.T) {
	t.Setenv("THAW_FROM_CALLER", "yes")
	root := plainRoot(t)
	for name, c := range map[string]Config{
		"plain": {Image: []byte(goldenImage)},
		"full": {
			Image: []byte(goldenImage), Hostname: "box", Args: []string{"--some"}, Env: []string{"MODE=mine", "THAW_FROM_CALLER", "THAW_NOT_SET", "EMPTY="}, Dir: "/tmp/x",
			User: "0", Volumes: []Volume{{Source: "/etc", Target: "/mnt/etc", ReadOnly: true}, {Source: "/tmp", Target: "/mnt/tmp"}}, ReadOnly: true,
			Memory: 64 << 20, CPUs: 1.5, Period: 20 * time.Millisecond, Pids: 99,
		},
		"host": {Image: []byte(goldenImage), HostNetwork: true, Terminal: true},
	} {
		t.Run(name, func(t *testing.T) {
			c.Root, c.Bundle, c.Cgroup = root, "/bundle", "/thaw-1/id"
			spec, err := NewSpec(c)
			if err != nil {
				t.Fatal(err)
			}
			spec.Linux.Seccomp = nil         // TestSeccomp
			spec.Process.ConsoleSize = nil   // that of whoever tests
			spec.Root.Path = "/root-of-test" // a new one each time
			got, err := json.MarshalIndent(spec, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(bytes.TrimSpace(want), got) {
				t.Errorf("%s differs; run the test with -update and look at the change. Now:\n%s", file, got)
			}
		})
	}
}

func TestSeccomp(t *testing.T) {
	spec, err := NewSpec(Config{Image: []byte(goldenImage), Root: plainRoot(t), Bundle: "/b", Cgroup: "/c"})
	if err != nil {
		t.Fatal(err)
	}
	s := spec.Linux.Seccomp
	if s.DefaultAction != "SCMP_ACT_ERRNO" || len(s.Syscalls) < 10 || len(s.Architectures) == 0 {
		t.Errorf("%+v", s)
	}
	for _, rule := range s.Syscalls {
		if rule.Action == "SCMP_ACT_ALLOW" && (slices.Contains(rule.Names, "mount") || slices.Contains(rule.Names, "bpf")) {
			t.Errorf("allowed: %v", rule.Names)
		}
	}
}

func TestRefusals(t *testing.T) {
	root := plainRoot(t)
	write(t, root, "big/etc/passwd", strings.Repeat("a:x:1:1::/:\n", 100_000))
	write(t, root, "big/bin/serve", "")
	fifo := filepath.Join(root, "fifo/etc/passwd")
	write(t, root, "fifo/etc/group", "")
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
		code   int
	}{
		"no command":      {func(c *Config) { c.Image = []byte(`{}`) }, "no command", 125},
		"empty command":   {func(c *Config) { c.Image = []byte(`{"config":{"Cmd":[""]}}`) }, "no command", 125},
		"broken config":   {func(c *Config) { c.Image = []byte(`{"config":`) }, "image config", 125},
		"large config":    {func(c *Config) { c.Image = make([]byte, maxConfig+1) }, "limit", 125},
		"NUL":             {func(c *Config) { c.Args = []string{"a\x00b"} }, "NUL", 125},
		"relative folder": {func(c *Config) { c.Dir = "srv" }, "absolute", 125},
		"unknown user":    {func(c *Config) { c.User = "nobody" }, `user "nobody" of the image`, 125},
		"unknown group":   {func(c *Config) { c.User = "app:none" }, `user "app:none" of the image`, 125},
		"high id":         {func(c *Config) { c.User = "far" }, "above 1073741823", 125},
		"large passwd":    {func(c *Config) { c.Root += "/big" }, "longer than", 125},
		"FIFO as passwd":  {func(c *Config) { c.Root += "/fifo" }, "not a regular file", 125},
		"no root":         {func(c *Config) { c.Root += "/none" }, "root file system", 125},
		"no cgroup":       {func(c *Config) { c.Cgroup = "/" }, "cgroup", 125},
		"little memory":   {func(c *Config) { c.Memory = 1 << 20 }, "at least 6 MiB", 125},
		"negative memory": {func(c *Config) { c.Memory = -1 }, "at least 6 MiB", 125},
		"little CPU":      {func(c *Config) { c.CPUs = 0.001 }, "at least 0.01 cores", 125},
		"negative CPU":    {func(c *Config) { c.CPUs = -1 }, "at least", 125},
		"short period":    {func(c *Config) { c.CPUs, c.Period = 1, time.Millisecond }, "20ms to 100ms", 125},
		"negative pids":   {func(c *Config) { c.Pids = -1 }, "positive", 125},
		"missing volume":  {func(c *Config) { c.Volumes = []Volume{{Source: root + "/none", Target: "/x"}} }, "no such file", 125},
		"not found":       {func(c *Config) { c.Image = []byte(`{"config":{"Cmd":["none"]}}`) }, "none: not found in the image", 127},
		"path not found":  {func(c *Config) { c.Image = []byte(`{"config":{"Cmd":["./bin/none"]}}`) }, "./bin/none: not found", 127},
		"not executable":  {func(c *Config) { c.Image = []byte(`{"config":{"Cmd":["/etc/data"]}}`) }, "/etc/data: not an executable", 126},
		"folder":          {func(c *Config) { c.Image = []byte(`{"config":{"Cmd":["/etc"]}}`) }, "/etc: is a folder", 126},
	} {
		t.Run(name, func(t *testing.T) {
			c := Config{Image: []byte(`{"config":{"Cmd":["serve"]}}`), Root: root, Bundle: "/b", Cgroup: "/c"}
			test.change(&c)
			_, err := NewSpec(c)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("%v, want one line with %q", err, test.want)
			}
			if ExitCode(err) != test.code {
				t.Errorf("exit code %d, want %d", ExitCode(err), test.code)
			}
		})
	}
}

func TestArgs(t *testing.T) {
	for _, test := range []struct {
		image string
		args  []string
		want  string
	}{
		{`{"config":{"Entrypoint":["e","f"],"Cmd":["c"]}}`, nil, "e f c"},
		{`{"config":{"Entrypoint":["e"],"Cmd":["c"]}}`, []string{"d", ""}, "e d "},
		{`{"config":{"Cmd":["c","d"]}}`, nil, "c d"},
		{`{"config":{"Cmd":"one string"}}`, nil, "one string"},
		{`{"config":{"Entrypoint":null,"Cmd":null}}`, []string{"x"}, "x"},
		{`{"config":null}`, []string{"x"}, "x"},
	} {
		i, err := parseImage([]byte(test.image))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := i.args(test.args); err != nil || strings.Join(got, " ") != test.want {
			t.Errorf("%s: %q, %v, want %q", test.image, got, err, test.want)
		}
	}
}

func TestUsers(t *testing.T) {
	root := plainRoot(t)
	for name, want := range map[string]struct {
		uid, gid uint32
		more     int
		home     string
	}{
		"":         {0, 0, 0, "/root"},
		"app":      {1000, 1001, 1, "/home/app"},
		"1000":     {1000, 1001, 1, "/home/app"},
		"77":       {77, 0, 0, "/"},
		"app:root": {1000, 0, 0, "/home/app"},
		"77:88":    {77, 88, 0, "/"},
	} {
		u, home, err := lookUser(root, name)
		if err != nil || u.UID != want.uid || u.GID != want.gid || len(u.AdditionalGids) != want.more || home != want.home {
			t.Errorf("%q: %+v %s %v, want %+v", name, u, home, err, want)
		}
	}
}

// A symlink leads where it would lead inside.
func TestRootIsNotLeft(t *testing.T) {
	root := plainRoot(t)
	outside := filepath.Join(filepath.Dir(root), "outside")
	write(t, outside, "passwd", "spy:x:5:5::/:\n")
	write(t, root, "real/passwd", "inside:x:6:6::/in:\n")
	passwd := filepath.Join(root, "etc/passwd")
	for target, wantErr := range map[string]bool{outside + "/passwd": true, "../../outside/passwd": true, "/real/passwd": false} {
		if err := errors.Join(os.Remove(passwd), os.Symlink(target, passwd)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := lookUser(root, "spy"); err == nil {
			t.Errorf("%s: found a user outside", target)
		}
		if _, _, err := lookUser(root, "inside"); (err != nil) != wantErr {
			t.Errorf("%s: %v", target, err)
		}
	}
}

func TestParseVolume(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for text, want := range map[string]Volume{
		dir + ":/x":    {dir, "/x", false},
		dir + ":/x:rw": {dir, "/x", false},
		".:/x/y:ro":    {dir, "/x/y", true},
	} {
		if got, err := ParseVolume(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", ":", dir, ":/x", dir + ":", dir + ":x", dir + ":/", dir + ":/..", dir + ":/x:z", dir + ":/x:ro:ro", dir + "/none:/x"} {
		if got, err := ParseVolume(text); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestWriteBundle(t *testing.T) {
	c := Config{Image: []byte(goldenImage), Root: plainRoot(t), Bundle: filepath.Join(t.TempDir(), "a/b"), Cgroup: "/thaw/id"}
	if err := WriteBundle(c); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"hostname": "id\n", "hosts": "127.0.1.1\tid\n", "resolv.conf": "# no network\n", "config.json": "{"} {
		data, err := os.ReadFile(filepath.Join(c.Bundle, name))
		if err != nil || !strings.Contains(string(data), want) {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	if info, _ := os.Stat(filepath.Join(c.Bundle, "config.json")); info.Mode().Perm() != 0o600 {
		t.Errorf("config.json may hold secrets and is %v", info.Mode())
	}
	c.Bundle = "b"
	if WriteBundle(c) == nil {
		t.Error("relative bundle")
	}
}

func TestStopSignal(t *testing.T) {
	for name, want := range map[string]int{
		"SIGQUIT": 3, "quit": 3, "3": 3, "SIGRTMIN+3": 37, "": 15, "SIGWHAT": 15, "0": 15, "65": 15, "-3": 15, "SIGRTMIN+99": 15, "SIGKILL": 9,
	} {
		if got := stopSignal(name); int(got) != want {
			t.Errorf("%q: %d, want %d", name, got, want)
		}
	}
}

func TestLastError(t *testing.T) {
	for log, want := range map[string]string{
		"": "",
		"{\"level\":\"warning\",\"msg\":\"w\"}\n{\"level\":\"error\",\"msg\":\"a\\n b\"}\n{\"level\":\"debug\",\"msg\":\"d\"}\n": "a b",
		"{\"msg\":\"only\"}\ngarbage\n{": "only",
	} {
		if got := lastError(log); got != want {
			t.Errorf("%q: %q, want %q", log, got, want)
		}
	}
}

func FuzzParseImage(f *testing.F) {
	for _, seed := range []string{goldenImage, `{}`, `null`, `{"config":{"Cmd":"x"}}`, `{"config":{"Cmd":[1]}}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		i, err := parseImage(data)
		if err != nil {
			return
		}
		if args, err := i.args(nil); err == nil && len(args) == 0 {
			t.Error("no command and no error")
		}
		if dir, err := i.dir(""); err == nil && !filepath.IsAbs(dir) {
			t.Errorf("folder %q", dir)
		}
	})
}

// What JSON would change is refused by name, without values of variables.
func TestNotUTF8(t *testing.T) {
	bad := "a\xffb"
	for want, change := range map[string]func(*Config){
		`argument "a\xffb"`: func(c *Config) { c.Args = []string{bad} }, `variable "K"`: func(c *Config) { c.Env = []string{"K=secret" + bad} },
		"working directory": func(c *Config) { c.Dir = "/" + bad }, "image config": func(c *Config) { c.Image = []byte(`{"config":{"Env":["A=` + bad + `"]}}`) },
		"volume's place": func(c *Config) { c.Volumes = []Volume{{Source: "/", Target: "/" + bad}} },
	} {
		c := Config{Image: []byte(`{"config":{"Cmd":["probe"]}}`), Root: newRoot(t), Bundle: "/b", Cgroup: "/c"}
		change(&c)
		if _, err := NewSpec(c); !errors.Is(err, errNotUTF8) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := parseImage([]byte("{\"history\":\"" + bad + "\"}")); err != nil {
		t.Errorf("what nobody runs: %v", err)
	}
}
