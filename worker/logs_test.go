package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"thaw/invokewire"
)

func testLogs(t testing.TB, limits LogLimits) *logStore {
	return newLogStore(filepath.Join(t.TempDir(), "logs"), limits, slog.New(slog.DiscardHandler))
}

func openStream(t testing.TB, l *logStore, name string) *stream {
	t.Helper()
	s, err := l.open("000000000000", "f", name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

// lines reads what a function has logged.
func lines(t *testing.T, l *logStore, q query) (all []string) {
	t.Helper()
	q.account, q.function = "000000000000", "f"
	err := l.read(t.Context(), q, func(events []invokewire.LogEvent) error {
		for _, e := range events {
			all = append(all, e.Message)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// What an invoke logs stands between START and REPORT, and the tail ends with
// REPORT.
func TestStreamOrder(t *testing.T) {
	l := testLogs(t, LogLimits{})
	s := openStream(t, l, "2026/11/22/[$LATEST]0123")
	s.begin(true, "START")
	s.write([]byte("one\ntwo\r\nthree"))
	tail := s.end("END", "REPORT")
	if want := "START\none\ntwo\nthree\nEND\nREPORT\n"; string(tail) != want {
		t.Errorf("tail %q, want %q", tail, want)
	}
	if got, want := strings.Join(lines(t, l, query{}), "|"), "START|one|two|three|END|REPORT"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	streams, err := l.streams("000000000000", "f")
	if err != nil || len(streams) != 1 || streams[0].Name != s.name || streams[0].First == 0 || streams[0].Bytes == 0 {
		t.Errorf("%+v, %v", streams, err)
	}
	if s.begin(false, "START"); s.end("END") != nil {
		t.Error("a tail that nobody asked for")
	}
}

// A tail has the last 4 KiB.
func TestTailIsBounded(t *testing.T) {
	s := openStream(t, testLogs(t, LogLimits{}), "s")
	s.begin(true, "START")
	for n := range 5000 {
		s.write(fmt.Appendf(nil, "line %d\n", n))
	}
	tail := s.end("END", "REPORT")
	if len(tail) != tailSize || !bytes.HasSuffix(tail, []byte("line 4999\nEND\nREPORT\n")) {
		t.Errorf("%d bytes, ends with %q", len(tail), tail[max(0, len(tail)-60):])
	}
}

// A flood is cut and counted, does not reach the next invoke, and the disk stays
// within its limit.
func TestFlood(t *testing.T) {
	l := testLogs(t, LogLimits{Invoke: 100 * (99 + lineCost), Stream: 30000})
	s := openStream(t, l, "s")
	line := []byte(strings.Repeat("x", 99) + "\n")
	for range 20 {
		s.begin(true, "START")
		for range 1000 {
			s.write(line)
		}
		s.end("END")
	}
	all := lines(t, l, query{})
	if got, want := all[len(all)-2], "[thaw] 900 more lines, 90000 bytes, were not kept: an invoke may log 11400 bytes"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	var size int64
	entries, err := filesOf(filepath.Join(l.dir, "000000000000", "f"))
	if err != nil {
		t.Fatal(err)
	}
	if size = sum(entries); size > 30000+flushSize || size == 0 {
		t.Errorf("%d bytes on disk", size)
	}
	if l.bytes.Load() != size {
		t.Errorf("%d bytes counted, %d there", l.bytes.Load(), size)
	}
}

// Lines of one instance never interleave, whoever writes them.
func TestLinesAreWhole(t *testing.T) {
	l := testLogs(t, LogLimits{Invoke: 1 << 30})
	s := openStream(t, l, "s")
	var writers sync.WaitGroup
	for n := range 8 {
		writers.Go(func() {
			text := bytes.Repeat([]byte{'a' + byte(n)}, 300)
			for range 50 {
				s.write(append(bytes.Clone(text), '\n'))
				s.platform(string(text))
			}
		})
	}
	writers.Wait()
	s.close()
	all := lines(t, l, query{})
	if len(all) != 800 {
		t.Errorf("%d lines", len(all))
	}
	for _, line := range all {
		if len(line) != 300 || strings.Trim(line, line[:1]) != "" {
			t.Fatalf("not one writer's: %q", line)
		}
	}
}

// Queries bound what they get by stream, time and number.
func TestLogQuery(t *testing.T) {
	l := testLogs(t, LogLimits{})
	for _, name := range []string{"a", "b"} {
		s := openStream(t, l, name)
		for n := range 5 {
			s.write(fmt.Appendf(nil, "%s%d\n", name, n))
		}
		s.close()
	}
	if got := lines(t, l, query{stream: "b"}); len(got) != 5 || got[0] != "b0" {
		t.Error(got)
	}
	if got := lines(t, l, query{limit: 3}); len(got) != 3 {
		t.Error(got)
	}
	if got := lines(t, l, query{since: time.Now().Add(time.Hour).UnixMilli()}); len(got) != 0 {
		t.Error(got)
	}
	for _, bad := range []string{"", "..", "a/b", "a\x00"} {
		if err := l.read(t.Context(), query{account: "1", function: bad}, nil); err == nil {
			t.Errorf("function %q has a log", bad)
		}
	}
}

// A file's time is behind that of the lines in it, by a tick of the kernel.
func TestLogSinceItsTick(t *testing.T) {
	l := testLogs(t, LogLimits{})
	s := openStream(t, l, "s")
	began := time.Now()
	s.write([]byte("just now\n"))
	s.close()
	if err := os.Chtimes(s.file.path, began, began.Add(-10*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if got := lines(t, l, query{since: began.UnixMilli()}); len(got) != 1 {
		t.Error(got)
	}
}

// Who follows a log gets the lines that come, once each.
func TestFollow(t *testing.T) {
	l := testLogs(t, LogLimits{})
	s := openStream(t, l, "s")
	s.begin(true, "early")
	s.end()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []string
	err := l.read(ctx, query{account: "000000000000", function: "f", follow: true}, func(events []invokewire.LogEvent) error {
		for _, e := range events {
			got = append(got, e.Message)
		}
		switch {
		case len(events) == 0: // it looks, and nothing has come
		case len(got) == 1:
			s.write([]byte("late\n")) // written by its timer
		default:
			cancel()
		}
		return nil
	})
	if err != nil || strings.Join(got, "|") != "early|late" {
		t.Errorf("%q, %v", got, err)
	}
}

// Who follows a log gets its lines once each, also those that were rotated away
// before anybody has looked.
func TestFollowRotated(t *testing.T) {
	l := testLogs(t, LogLimits{Stream: 4 * leastLog})
	s := openStream(t, l, "s")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []string
	rounds, wrote := 0, 0
	write := func(n int) { // lines of 1 KiB; with 128 KiB a file is rotated
		for range n {
			s.write(fmt.Appendf(nil, "%06d%01017d\n", wrote, 0))
			wrote++
		}
		s.flushNow()
	}
	write(5)
	err := l.read(ctx, query{account: "000000000000", function: "f", follow: true}, func(events []invokewire.LogEvent) error {
		for _, e := range events {
			got = append(got, e.Message[:6])
		}
		if len(got) < wrote {
			return fmt.Errorf("told %d lines of %d", len(got), wrote)
		}
		if rounds++; rounds == 5 {
			cancel()
			return nil
		}
		write(100)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for n, line := range got {
		if line != fmt.Sprintf("%06d", n) {
			t.Fatalf("line %d is %s", n, line)
		}
	}
}

// Old, many and large logs go, the oldest first; those in use stay.
func TestPrune(t *testing.T) {
	l := testLogs(t, LogLimits{Streams: 3, Age: time.Hour, Function: 3000})
	now := time.Now()
	write := func(name string, size int, age time.Duration) string {
		s := openStream(t, l, name)
		s.close()
		at := filepath.Join(l.dir, "000000000000", "f", name)
		if err := errors.Join(os.WriteFile(at, make([]byte, size), 0o600), os.Chtimes(at, now, now.Add(-age))); err != nil {
			t.Fatal(err)
		}
		return at
	}
	write("old", 10, 2*time.Hour)
	used := write("used", 10, 3*time.Hour)
	write("large", 2500, 30*time.Minute)
	write("new", 1000, time.Minute)
	write("newer", 1000, time.Second)
	l.prune(now, map[string]bool{used: true})
	var left []string
	entries, err := filesOf(filepath.Dir(used))
	for _, e := range entries {
		left = append(left, filepath.Base(e.path))
	}
	if got := strings.Join(left, " "); err != nil || got != "used new newer" {
		t.Errorf("%q are left, %v", got, err)
	}
	if l.bytes.Load() != 2010 {
		t.Errorf("%d bytes counted", l.bytes.Load())
	}
}

// What is logged is on disk soon, also if the function then only waits.
func TestFlushedByTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStream(t, testLogs(t, LogLimits{}), "s")
		s.write([]byte("line\n"))
		time.Sleep(2 * flushAfter)
		synctest.Wait()
		if data, err := os.ReadFile(s.file.path); err != nil || !bytes.HasSuffix(data, []byte(" line\n")) {
			t.Errorf("%q, %v", data, err)
		}
	})
}

// Lines of a log's file are read back as they were, and garbage is no line.
func FuzzParseLine(f *testing.F) {
	for _, seed := range []string{"1700000000000 text\n", "1 \n", " x\n", "-1 x\n", "99999999999999999999 x\n", "x"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		if e, ok := parseLine(line, "s"); ok && e.Time < 0 {
			t.Errorf("%q: %+v", line, e)
		}
	})
}

// Logs that are written are not pruned: however many there are, together they
// keep to what a function's may take.
func TestLogsInUseShareTheirLimit(t *testing.T) {
	const each, all = 8 * leastLog, 16 * leastLog
	l := testLogs(t, LogLimits{Stream: each, Function: all, Invoke: each})
	var streams []*stream
	for n := range 16 {
		streams = append(streams, openStream(t, l, fmt.Sprint(n)))
	}
	line := append(bytes.Repeat([]byte("x"), 1023), '\n')
	for _, s := range streams {
		for range 2 * each / len(line) {
			s.write(line)
		}
		s.end()
		s.flushNow()
	}
	if n := l.bytes.Load(); n > all || n < all/4 {
		t.Errorf("16 logs take %d bytes, want %d at most", n, all)
	}
	for _, s := range streams[1:] {
		s.close()
	}
	if got := l.limit(filepath.Dir(streams[0].file.path)); got != each {
		t.Errorf("a log alone may take %d bytes, want %d", got, each)
	}
	if kept, dropped := l.text.kept.Load(), l.text.dropped.Load(); kept > 16*each || kept+dropped != 2*16*each {
		t.Errorf("kept %d bytes, dropped %d", kept, dropped)
	}
}

// flushNow is flush for who does not hold mu.
func (s *stream) flushNow() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flush()
}

// An instance may log a burst at once, and no more than logRate for long.
func TestPace(t *testing.T) {
	var p pace
	now := time.Now()
	if ahead := p.take(logBurst, logRate, logBurst, now); ahead > 0 {
		t.Errorf("a burst has to wait %v", ahead)
	}
	if ahead := p.take(logRate/2, logRate, logBurst, now); ahead != time.Second/2 {
		t.Errorf("half a second's bytes have to wait %v", ahead)
	}
	now = now.Add(time.Second/2 + time.Second*logBurst/logRate)
	if ahead := p.take(logBurst, logRate, logBurst, now); ahead > 0 {
		t.Errorf("after that time a burst has to wait %v", ahead)
	}
}

// Who asks for what there is up to now gets all of it, though it is not written
// yet, and nothing later: lines of another log would come behind. The first lines
// end with their millisecond.
func TestLinesUpToNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := testLogs(t, LogLimits{})
		a, b := openStream(t, l, "a"), openStream(t, l, "b")
		began := time.Now().UnixMilli()
		for _, step := range []struct {
			s    *stream
			text string
		}{{a, "a0"}, {b, "b1"}, {a, "a2\na2 too\na2 again"}, {b, "b3"}} {
			step.s.write([]byte(step.text))
			time.Sleep(time.Millisecond)
		}
		a.write([]byte("a4"))
		for _, c := range []struct {
			until int64
			limit int
			want  string
		}{
			{4, 0, "a0 b1 a2 a2 too a2 again b3 a4"},
			{3, 0, "a0 b1 a2 a2 too a2 again b3"},
			{4, 2, "a0 b1"},
			{4, 3, "a0 b1 a2 a2 too a2 again"},
			{1000, 0, "a0 b1 a2 a2 too a2 again b3 a4"}, // by a clock that is ahead
		} {
			if got := strings.Join(lines(t, l, query{until: began + c.until, limit: c.limit}), " "); got != c.want {
				t.Errorf("to ms %d, %d lines: %q, want %q", c.until, c.limit, got, c.want)
			}
		}
		if waited := time.Now().UnixMilli() - began - 4; waited > 200 {
			t.Errorf("waited %d ms for a clock that is ahead", waited)
		}
	})
}

// Few read logs at a time: each may hold all of a function's in memory. Others wait
// until one is done, or they do not want to any more.
func TestLogReadsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := testLogs(t, LogLimits{})
		begun, release := 0, make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		read := func() error {
			return l.read(ctx, query{account: "000000000000", function: "f"}, func([]invokewire.LogEvent) error {
				begun++
				<-release
				return nil
			})
		}
		ended := make(chan error, logReads+2)
		for n := range logReads + 2 {
			go func() { ended <- read() }()
			synctest.Wait()
			if want := min(n+1, logReads); begun != want {
				t.Fatalf("%d of %d read, want %d", begun, n+1, want)
			}
		}
		release <- struct{}{}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if synctest.Wait(); begun != logReads+1 {
			t.Errorf("%d have read once one is done", begun)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("one that waits no more: %v", err)
		}
		close(release)
		for range logReads {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestStreamName(t *testing.T) {
	day := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for group, want := range map[string]string{"/aws/lambda/f": "2026/01/02/[3]00ff", "/aws/lambda/g": "2026/01/02/f[3]00ff"} {
		if got := streamName(day, &invokewire.Spec{Function: "f", Version: "3", LogGroup: group}, "00ff"); got != want {
			t.Errorf("%s: %s, want %s", group, got, want)
		}
	}
}
