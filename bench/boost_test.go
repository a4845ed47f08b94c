package bench

import (
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const (
	// boostWork is processor time, in ms, of one thread.
	boostWork = 500
	// boostRounds are taken of all four rows, in turns.
	boostRounds = 5
)

// reportTimes finds what a REPORT line says of times.
var reportTimes = regexp.MustCompile(`(?m)REPORT .*\tDuration: ([0-9.]+) ms\t.*?(?:Init Duration: ([0-9.]+) ms|$)`)

// report invokes a function and reads its REPORT line: the handler's time and the
// init's, 0 if there was none, in ms.
func (p *place) report(b testing.TB, function, payload string, fails bool) (handler, init float64) {
	b.Helper()
	out, err := exec.Command(p.thaw, p.args("invoke", function, payload, "--log")...).CombinedOutput()
	m := reportTimes.FindSubmatch(out)
	if (err != nil) != fails || m == nil {
		b.Fatalf("invoke %s: %v\n%s", function, err, out)
	}
	handler, err = strconv.ParseFloat(string(m[1]), 64)
	try(b, err)
	if len(m[2]) > 0 {
		init, err = strconv.ParseFloat(string(m[2]), 64)
		try(b, err)
	}
	return handler, init
}

// BenchmarkBoost does the same work four ways: in an init, which has the whole
// processor; in an init that an invoke runs again after the function has ended
// itself, which has what the function's memory pays for, as the handler has; each
// with little memory and with that of one processor.
func BenchmarkBoost(b *testing.B) {
	asRoot(b)
	p := newPlace(b)
	p.platform(b, "--nodes=0")
	var ratios [3]Ratios // boosted init, init without boost, handler: 128 MB ÷ 1769 MB
	for round := range boostRounds {
		var took [2][3]float64
		for i, memory := range []string{"128", "1769"} {
			name := fmt.Sprintf("boost%s-%d", memory, round)
			timed(b, p.thaw, p.args("deploy", name, "oci:"+corpus(b, "fn-go"), "--memory", memory, "--timeout", "60", "--env", fmt.Sprintf("FUNCTION_INIT_CPU_MS=%d", boostWork))...)
			_, took[i][0] = p.report(b, name, "{}", false)
			took[i][2], _ = p.report(b, name, fmt.Sprintf(`{"do":{"cpu_ms":%d}}`, boostWork), false)
			p.report(b, name, `{"do":{"exit":1}}`, true)
			took[i][1], _ = p.report(b, name, "{}", false)
			timed(b, p.thaw, p.args("delete", name)...)
		}
		for row := range ratios {
			ratios[row] = append(ratios[row], took[0][row]/took[1][row])
		}
		say("boost, ms: init %.0f at 128 MB, %.0f at 1769 MB; init again %.0f, %.0f; handler %.0f, %.0f", took[0][0], took[1][0], took[0][1], took[1][1], took[0][2], took[1][2])
	}
	say("boost, 128 MB ÷ 1769 MB: init %v (at most 1.2), init again in an invoke %v, handler %v (at least 8)", ratios[0], ratios[1], ratios[2])
	b.ReportMetric(ratios[0].median(), "init/init")
}

func TestReportTimes(t *testing.T) {
	line := "REPORT RequestId: 8f5\tDuration: 12.34 ms\tBilled Duration: 100 ms\tMemory Size: 128 MB\tMax Memory Used: 9 MB\t"
	for text, want := range map[string]string{line: "12.34,", line + "Init Duration: 87.10 ms\t": "12.34,87.10"} {
		m := reportTimes.FindStringSubmatch("START\n" + text + "\n")
		if m == nil || strings.Join(m[1:], ",") != want {
			t.Errorf("%q: %q", text, m)
		}
	}
}
