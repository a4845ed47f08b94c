package bench

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// startRounds is how often each way of a start is measured.
const startRounds = 24

// startNumbers are those of --stats-json.
type startNumbers struct {
	DeviceBytes int64 `json:"device_bytes"`
	ImageBytes  int64 `json:"image_bytes"`
	Bytes       struct{ Cache, Origin int64 }
	Chunks      struct{ Cache, Origin int64 }
	StartMS     map[string]float64 `json:"start_ms"`
}

// BenchmarkStart compares a program that ends at once, in a container of an
// image, with runc on an unpacked folder with the same configuration: with
// nothing mounted, which each start then does and undoes, and with the image
// mounted already.
func BenchmarkStart(b *testing.B) {
	asRoot(b, "runc", "umoci")
	p := newPlace(b, "python")
	plain := p.bundle(b, "python", "/bin/true")
	unpack(b, "python", filepath.Join(plain.dir, "rootfs"), shifted()...)
	starts := newStarts(b, p, plain)
	cold := starts.measure(b)
	cold.say("start, nothing mounted")
	_, release := p.hold(b, "python")
	warm := starts.measure(b)
	warm.say("start, image mounted")
	release()
	b.ReportMetric(cold.above["thaw"].median(), "ms-above")
	b.ReportMetric(warm.above["thaw"].median(), "ms-above-mounted")
}

// starts are ways to start one program.
type starts struct {
	ways  []string
	argv  map[string][]string
	stats string
}

func newStarts(b testing.TB, p *place, plain *bundle) *starts {
	s := &starts{ways: []string{"runc", "thaw", "thaw by runc"}, stats: filepath.Join(b.TempDir(), "stats.json")}
	s.argv = map[string][]string{
		"runc":         plain.command(),
		"thaw":         append([]string{p.thaw}, p.args("run", "--stats-json", s.stats, "python", "/bin/true")...),
		"thaw by runc": append([]string{p.thaw}, p.args("run", "--runtime", "runc", "--stats-json", s.stats, "python", "/bin/true")...),
	}
	return s
}

// measured is what starts took, by way.
type measured struct {
	wall, above map[string]milliseconds // above: what a round took more than runc did in it
	stages      map[string]milliseconds // of "thaw"
}

// measure takes turns.
func (s *starts) measure(b testing.TB) *measured {
	m := &measured{map[string]milliseconds{}, map[string]milliseconds{}, map[string]milliseconds{}}
	for i := range 2 + startRounds { // two to warm up
		round := map[string]time.Duration{}
		for _, way := range s.ways {
			round[way] = quick(b, s.argv[way])
			if way != "thaw" || i < 2 {
				continue
			}
			var n startNumbers
			readJSON(b, s.stats, &n)
			n.StartMS["program and taking down"] = float64(round[way].Microseconds())/1000 - n.StartMS["total"]
			for stage, ms := range n.StartMS {
				m.stages[stage] = append(m.stages[stage], ms)
			}
		}
		if i < 2 {
			continue
		}
		for way, d := range round {
			wall, above := m.wall[way], m.above[way]
			wall.add(d)
			above.add(d - round["runc"])
			m.wall[way], m.above[way] = wall, above
		}
	}
	return m
}

// quick runs a command with nothing of this process in its way.
func quick(b testing.TB, argv []string) time.Duration {
	b.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	errs, err := os.CreateTemp(b.TempDir(), "stderr")
	try(b, err)
	defer errs.Close()
	cmd.Stderr = errs
	start := time.Now()
	err = cmd.Run()
	took := time.Since(start)
	if err != nil {
		text, _ := os.ReadFile(errs.Name())
		b.Fatalf("%v: %v\n%s", argv, err, text)
	}
	return took
}

func (m *measured) say(what string) {
	for _, way := range slices.Sorted(maps.Keys(m.wall)) {
		say("%s: %s %v; above runc %v", what, way, m.wall[way], m.above[way])
	}
	var parts []string
	for _, stage := range slices.SortedFunc(maps.Keys(m.stages), func(x, y string) int {
		return int(1000 * (m.stages[y].median() - m.stages[x].median()))
	}) {
		parts = append(parts, fmt.Sprintf("%s %.1f", stage, m.stages[stage].median()))
	}
	say("%s: stages in ms, medians: %s", what, strings.Join(parts, ", "))
}

// BenchmarkReady compares the time from nothing to the first word of a program:
// with every cache empty, and by unpacking the whole image for runc. Layers and
// chunks are in the page cache, for both.
func BenchmarkReady(b *testing.B) {
	asRoot(b, "runc", "umoci")
	for image, argv := range map[string][]string{
		"python": {"python3", "-c", `import numpy; print("ready", flush=True)`},
		"node":   {"node", "-e", `console.log("ready")`},
	} {
		b.Run(image, func(b *testing.B) { benchReady(b, image, argv) })
	}
}

func benchReady(b *testing.B, image string, argv []string) {
	p := newPlace(b, image)
	var ours, eager milliseconds
	var ratios Ratios
	for range rounds {
		p.forget(b)
		r := begin(b, p.thaw, p.args(append([]string{"run", image}, argv...)...)...)
		r.end(b)
		plain := p.bundle(b, image, argv...) // kept to the end: removing it would slow down what comes next
		start := time.Now()
		unpack(b, image, filepath.Join(plain.dir, "rootfs"), shifted()...)
		unpacked := time.Since(start)
		command := plain.command()
		e := begin(b, command[0], command[1:]...)
		e.end(b)
		ours.add(r.took)
		eager.add(unpacked + e.took)
		ratios = append(ratios, (unpacked+e.took).Seconds()/r.took.Seconds())
	}
	say("ready from nothing, %s: %v; umoci unpack and runc %v; %v × faster", image, ours, eager, ratios)
	b.ReportMetric(milliseconds(ratios).median(), "×faster")
}
