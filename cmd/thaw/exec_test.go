package main

import (
	"strings"
	"testing"

	"thaw/internal/testoci"
)

// A program that the kernel does not execute is told once, with the status that
// docker has for it, and has not started.
func TestNotExecuted(t *testing.T) {
	t.Parallel() // it waits for processes mostly
	m := newMachine(t)
	var files []testoci.Entry
	for name, text := range map[string]string{"garbage": "\x7fELFgarbage", "elsewhere": "#!/no/such\n", "text": "words"} {
		f := testoci.File("bin/"+name, []byte(text))
		f.Mode = 0o755
		files = append(files, f)
	}
	layout := testoci.Layout(t, t.TempDir(), []string{"PATH=/bin"}, testoci.Tar(t, append([]testoci.Entry{testoci.Dir("bin")}, files...)...))
	m.must("convert", layout, "--name", "app")
	for _, runtime := range []string{"crun", "runc"} {
		for program, code := range map[string]int{"garbage": 126, "/bin/elsewhere": 127, "text": 126, "none": 127, "/bin": 126} {
			for _, flags := range [][]string{nil, {"-v", t.TempDir() + ":/volume"}} { // with one thaw leaves it to the runtime
				args := append(append([]string{"run", "--runtime", runtime}, flags...), "app", program)
				e := m.thaw(args...)
				if e.code != code || e.out != "" || strings.Contains(e.stderr, "started in") || strings.Count(e.stderr, "not found") > 1 {
					t.Errorf("%q: want status %d: %+v", args, code, e)
				}
				if flags == nil && (strings.Count(e.stderr, "\n") != 1 || strings.Contains(e.stderr, "{")) {
					t.Errorf("%q: it says\n%s", args, e.stderr)
				}
			}
		}
	}
}
