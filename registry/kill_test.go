package registry

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// childDir makes the test binary a registry over that folder.
const childDir = "REGISTRY_TEST_DIR"

func TestMain(m *testing.M) {
	dir := os.Getenv(childDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	h, err := New(dir, Options{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(l.Addr())
	_ = http.Serve(l, h) // until it is killed
}

// child starts a registry as a process.
func child(t *testing.T, dir string) (host string, kill func()) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(self)
	c.Env = append(os.Environ(), childDir+"="+dir)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		_ = c.Process.Kill() // once more does no harm
		_ = c.Wait()
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		kill()
		t.Fatalf("the registry says nothing: %v", err)
	}
	return strings.TrimSpace(line), kill
}

// TestKilled kills the registry while an image is pushed, at moments of all
// kinds: whatever it has under a name is whole, and the push then succeeds.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	for moment := range 8 {
		img, err := random.Image(200_000, 4)
		if err != nil {
			t.Fatal(err)
		}
		host, kill := child(t, dir)
		pushed := make(chan error, 1)
		go func() { pushed <- remote.Write(ref(t, fmt.Sprintf("%s/app:v%d", host, moment)), img) }()
		select {
		case <-time.After(time.Duration(rand.IntN(60)) * time.Millisecond):
		case <-pushed:
		}
		kill()
		checkWhole(t, dir)
		host, kill = child(t, dir)
		where := fmt.Sprintf("%s/app:v%d", host, moment)
		if err := remote.Write(ref(t, where), img); err != nil {
			t.Errorf("moment %d: %v", moment, err)
		}
		same(t, where, img)
		kill()
	}
}

// checkWhole reads every content and checks it against its name.
func checkWhole(t *testing.T, dir string) {
	t.Helper()
	blobs, err := os.ReadDir(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		if strings.HasPrefix(b.Name(), temporary) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, "blobs", b.Name()))
		if err != nil || digestOf(data) != "sha256:"+b.Name() {
			t.Errorf("%s is not whole: %v", b.Name(), err)
		}
	}
	for _, link := range []string{"manifests", "tags"} {
		files, err := filepath.Glob(filepath.Join(dir, "repositories", "*", link, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil || len(data) == 0 && !strings.HasPrefix(filepath.Base(f), temporary) {
				t.Errorf("%s is not whole: %q, %v", f, data, err)
			}
		}
	}
}

// TestSkopeo has a client that many use push and pull, without a docker daemon.
func TestSkopeo(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("NOT TESTED: skopeo is missing: run ./setup.sh")
	}
	host, _ := serve(t, t.TempDir(), Options{})
	img := sampleImage(t)
	if err := remote.Write(ref(t, host+"/app:v1"), img); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		t.Helper()
		c := exec.Command(skopeo, append([]string{"--insecure-policy", "--tmpdir", t.TempDir()}, args...)...)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	dir := filepath.Join(t.TempDir(), "image")
	run("copy", "--src-tls-verify=false", "--preserve-digests", "docker://"+host+"/app:v1", "dir:"+dir)
	run("copy", "--dest-tls-verify=false", "--preserve-digests", "dir:"+dir, "docker://"+host+"/copy/app:v2")
	same(t, host+"/copy/app:v2", img)
	resp, err := http.Get("http://" + host + "/v2/copy/app/tags/list")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != `{"name":"copy/app","tags":["v2"]}` {
		t.Errorf("%s, %v", b, err)
	}
}
