package sandbox

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// What the kernel would not execute is known before it is asked.
func TestFindProgram(t *testing.T) {
	root := t.TempDir()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	elf := self[:min(len(self), 8192)]
	if loader, err := elfInterpreter(bytes.NewReader(self), self); err != nil {
		t.Fatal(err)
	} else if loader != "" { // of a test that is built with the race detector, or cgo
		write(t, root, loader, "")
	}
	spoilt := bytes.Clone(elf)
	copy(spoilt[32:], bytes.Repeat([]byte{0xff}, 8)) // where the segments are
	for name, text := range map[string]string{
		"fine": string(elf), "spoilt": string(spoilt), "short": "\x7fELF", "text": "just words", "empty": "", "script": "#! /bin/fine -x\n", "elsewhere": "#!/no/such\n",
		"relative": "#!fine\n", "half": "#!",
	} {
		write(t, root, "bin/"+name, text)
		if err := os.Chmod(filepath.Join(root, "bin", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, code := range map[string]int{
		"fine": 0, "script": 0, "relative": 0, "half": 0, "spoilt": 126, "short": 126, "text": 126, "empty": 126, "elsewhere": 127, "none": 127,
	} {
		err := findProgram(root, &specs.Process{Args: []string{"/bin/" + name}, Cwd: "/"})
		if (err != nil) != (code != 0) || err != nil && (ExitCode(err) != code || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: %v, want %d", name, err, code)
		}
	}
	if err := whyNot(root, &specs.Process{Args: []string{"/bin/fine"}}); ExitCode(err) != codeNotExecutable {
		t.Errorf("for other reasons: %v", err)
	}
}

func TestCheckLengths(t *testing.T) {
	long, many := strings.Repeat("x", maxString), make([]string, maxStrings/9)
	for want, p := range map[int]*specs.Process{
		0:  {Args: []string{"a", long[1:]}, Env: []string{"K=" + long[3:]}},
		1:  {Args: []string{"a", long}},
		2:  {Args: []string{"a"}, Env: []string{"K=" + long}},
		-1: {Args: append([]string{"a"}, many...)},
	} {
		err := checkLengths(p)
		if (err != nil) != (want != 0) || err != nil && (ExitCode(err) != codeNotExecutable || len(err.Error()) > 200) {
			t.Errorf("%d: %.300v", want, err)
		}
	}
}
