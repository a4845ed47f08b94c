package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func TestRatios(t *testing.T) {
	if got := (Ratios{3, 1, 2}).String(); got != "2.00 (1.00 to 3.00, 3 rounds)" {
		t.Error(got)
	}
	if got := (Ratios{}).String(); got != "no measurement" {
		t.Error(got)
	}
}

// corpus gives the layout folder of an image, which must have been built.
func corpus(b testing.TB, name string) string {
	b.Helper()
	dir := os.Getenv("THAW_CORPUS")
	if dir == "" {
		dir = "../out/corpus"
	}
	dir, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "index.json")); err != nil {
		b.Fatalf("%v: build it with corpus/build %s", err, name)
	}
	return dir
}

// program builds thaw.
func program(b testing.TB) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "thaw")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "../cmd/thaw")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	return path
}

// outcome is what one run of a program took.
type outcome struct {
	stdout  []byte
	wall    time.Duration
	cpu     time.Duration
	peakRSS int64 // bytes
}

// timed runs a command to its end. Its peak memory is read from /proc while it
// runs: getrusage(2) would count what this process had when it forked.
func timed(b testing.TB, name string, args ...string) outcome {
	b.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(10 * time.Millisecond) // the mark only rises, so the last reading is near the peak
	defer tick.Stop()
	for peak := int64(0); ; {
		select {
		case <-tick.C:
			peak = max(peak, highWater(cmd.Process.Pid))
		case err := <-ended:
			if err != nil {
				b.Fatalf("%s %v: %v\n%s", name, args, err, stderr.Bytes())
			}
			return outcome{stdout.Bytes(), time.Since(begin), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), peak}
		}
	}
}

// highWater gives a process' peak resident memory in bytes (proc(5), VmHWM).
func highWater(pid int) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0 // it has ended
	}
	_, rest, _ := bytes.Cut(status, []byte("VmHWM:"))
	var kib int64
	_, _ = fmt.Sscan(string(rest), &kib) // 0 while it ends
	return kib << 10
}

// conversion is what convert --json ends with.
type conversion struct {
	Image       string `json:"image"`
	DeviceBytes int64  `json:"device_bytes"`
	Chunks      struct{ Total, Zero, New, Stored int64 }
	Bytes       struct{ Read, New, Stored int64 }
	Layers      struct{ Total, Reused int }
	Seconds     float64 `json:"seconds"`
}

// convert converts a layout, and gives what the program said and took.
func convert(b testing.TB, thaw, state, layout string) (conversion, outcome) {
	b.Helper()
	o := timed(b, thaw, "--state", state, "convert", "--json", "oci:"+layout)
	var c conversion
	if err := json.Unmarshal(o.stdout, &c); err != nil {
		b.Fatal(err)
	}
	return c, o
}

// layerBlobs gives the files of an image's layers, base first.
func layerBlobs(b testing.TB, layout string) []string {
	b.Helper()
	var index struct {
		Manifests []struct{ Digest string }
	}
	var manifest struct {
		Layers []struct{ Digest string }
	}
	readJSON(b, filepath.Join(layout, "index.json"), &index)
	readJSON(b, blob(layout, index.Manifests[0].Digest), &manifest)
	var files []string
	for _, l := range manifest.Layers {
		files = append(files, blob(layout, l.Digest))
	}
	return files
}

func blob(layout, digest string) string {
	return filepath.Join(layout, "blobs", "sha256", digest[len("sha256:"):])
}

func readJSON(b testing.TB, path string, v any) {
	b.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// say prints a line for docs/claims.md.
func say(format string, args ...any) { fmt.Printf("claim: "+format+"\n", args...) }

const mib = 1 << 20
