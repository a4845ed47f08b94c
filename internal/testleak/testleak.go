// Package testleak looks for goroutines that tests have left, as package goleak
// does, but for as long as a slow machine may take to end them.
package testleak

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is what the other waits of tests are: it costs nothing where nothing is left.
const patience = 3 * time.Minute

// Main runs a package's tests and ends the process; if they pass and leave a
// goroutine, it fails.
func Main(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := find(); err != nil {
			fmt.Fprintln(os.Stderr, "left by the tests:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// None fails a test that leaves goroutines which options do not except.
func None(t testing.TB, options ...goleak.Option) {
	t.Helper()
	if err := find(options...); err != nil {
		t.Error(err)
	}
}

// find gives what is left in the end.
func find(options ...goleak.Option) (err error) {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if err = goleak.Find(options...); err == nil {
			return nil
		}
	}
	return err
}
