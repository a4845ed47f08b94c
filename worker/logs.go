package worker

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"thaw/invokewire"
)

// olderSuffix ends the name of the older half of a log.
const olderSuffix = ".older"

// logStore is STATE/logs: a folder for each account, in it one for each function,
// in it a file for each instance, whose name is the log stream's, path-escaped.
type logStore struct {
	dir    string
	limits LogLimits
	log    *slog.Logger
	bytes  atomic.Int64 // of all files, as far as known
	text   logText
	turns  chan struct{} // one for each read that is under way, and does not follow

	mu      sync.Mutex         // guards what follows
	inUse   map[string]int     // logs that are written, by folder
	users   int                // in all
	writing map[*stream]string // the folders of those that are open
}

// logText counts what functions have written since the worker's start.
type logText struct {
	kept, dropped atomic.Uint64 // bytes
}

func newLogStore(dir string, limits LogLimits, log *slog.Logger) *logStore {
	limits.Stream = cmp.Or(limits.Stream, 8<<20)
	limits.Function = cmp.Or(limits.Function, 64<<20)
	limits.Total = cmp.Or(limits.Total, 1<<30)
	limits.Streams = cmp.Or(limits.Streams, 1000)
	limits.Age = cmp.Or(limits.Age, 14*24*time.Hour)
	limits.Invoke = cmp.Or(limits.Invoke, 1<<20)
	return &logStore{dir: dir, limits: limits, log: log, turns: make(chan struct{}, logReads), inUse: map[string]int{}, writing: map[*stream]string{}}
}

// leastLog is what a log may take at least, in bytes, of however many.
const leastLog = 64 << 10

// begin counts a log of a folder that is written from now on, and end one that is
// not any more.
func (l *logStore) begin(dir string) { l.count(dir, 1) }
func (l *logStore) end(dir string)   { l.count(dir, -1) }

func (l *logStore) count(dir string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users += n
	if l.inUse[dir] += n; l.inUse[dir] == 0 {
		delete(l.inUse, dir)
	}
}

// limit is what one log of a folder may take: logs that are written are not
// pruned, so they share what a function's, and all, may take.
func (l *logStore) limit(dir string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	share := min(l.limits.Function/int64(max(1, l.inUse[dir])), l.limits.Total/int64(max(1, l.users)))
	return min(l.limits.Stream, max(share, leastLog))
}

func (l *logStore) grown(n int64) { l.bytes.Add(n) }

// streamName is YYYY/MM/DD/[version]32hex, with the function's name before the
// version if the group is not its own: others may write to it too.
func streamName(now time.Time, s *invokewire.Spec, hex string) string {
	of := s.Function
	if s.LogGroup == invokewire.LogPrefix+of {
		of = ""
	}
	return now.UTC().Format("2006/01/02/") + of + "[" + s.Version + "]" + hex
}

// folder is a function's, if the names are such that can be.
func (l *logStore) folder(account, function string) (string, error) {
	for _, name := range []string{account, function} {
		if name == "" || len(name) > 200 || name[0] == '.' || strings.ContainsAny(name, "/\x00") {
			return "", fmt.Errorf("log of %q, %q: bad name", account, function)
		}
	}
	return filepath.Join(l.dir, account, function), nil
}

// open makes the log of a new instance.
func (l *logStore) open(account, function, name string) (*stream, error) {
	dir, err := l.folder(account, function)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f := &logFile{path: filepath.Join(dir, url.PathEscape(name)), store: l}
	if f.file, err = os.OpenFile(f.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	l.begin(dir)
	s := newStream(name, f, l.limits.Invoke)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writing[s] = dir
	return s, nil
}

// closed forgets a log that is not written any more.
func (l *logStore) closed(s *stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.writing, s)
}

// settle has all in a folder's files that was logged up to a time, in ms, and gives
// the last ms of which this is so: the clock has to have passed it.
func (l *logStore) settle(ctx context.Context, dir string, until int64) int64 {
	if wait := time.Until(time.UnixMilli(until + 1)); wait > 0 {
		passed := time.NewTimer(min(wait, settleWithin))
		defer passed.Stop()
		select {
		case <-passed.C:
		case <-ctx.Done():
		}
	}
	until = min(until, time.Now().UnixMilli()-1)
	l.mu.Lock()
	var open []*stream
	for s, in := range l.writing {
		if in == dir {
			open = append(open, s)
		}
	}
	l.mu.Unlock() // a stream takes it while its own is held
	for _, s := range open {
		s.settle()
	}
	return until
}

// logEntry is a file of a log.
type logEntry struct {
	path string
	size int64
	last time.Time
	info os.FileInfo
}

// streams lists a function's, the newest last.
func (l *logStore) streams(account, function string) ([]invokewire.LogStream, error) {
	dir, err := l.folder(account, function)
	if err != nil {
		return nil, err
	}
	entries, err := filesOf(dir)
	if err != nil {
		return nil, err
	}
	all := []invokewire.LogStream{}
	for _, e := range entries {
		base := filepath.Base(e.path)
		if strings.HasSuffix(base, olderSuffix) {
			continue
		}
		name, err := url.PathUnescape(base)
		if err != nil {
			continue // not ours
		}
		first := firstTime(e.path)
		s := invokewire.LogStream{Name: name, Created: first, First: first, Last: e.last.UnixMilli(), Bytes: e.size}
		if first == 0 {
			s.Created, s.Last = e.last.UnixMilli(), 0
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b invokewire.LogStream) int { return cmp.Compare(a.Created, b.Created) })
	return all, nil
}

// filesOf lists a folder's files, by the time of the last write. A folder that is
// not there has none.
func filesOf(dir string) ([]logEntry, error) {
	items, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []logEntry
	for _, item := range items {
		if info, ierr := item.Info(); ierr == nil && info.Mode().IsRegular() {
			all = append(all, logEntry{filepath.Join(dir, item.Name()), info.Size(), info.ModTime(), info})
		}
	}
	slices.SortFunc(all, func(a, b logEntry) int { return a.last.Compare(b.last) })
	return all, err
}

// firstTime is when a log's first line was written, in ms; 0: it has none.
func firstTime(path string) int64 {
	for _, name := range []string{path + olderSuffix, path} {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		var head [24]byte
		n, _ := io.ReadFull(f, head[:])
		f.Close()
		field, _, ok := bytes.Cut(head[:n], []byte{' '})
		if at, err := strconv.ParseInt(string(field), 10, 64); ok && err == nil {
			return at
		}
	}
	return 0
}

// prune removes what is too old, too many or too much. Logs in use stay: their
// own limit holds them.
func (l *logStore) prune(now time.Time, inUse map[string]bool) {
	var all []logEntry
	accounts, _ := os.ReadDir(l.dir)
	for _, account := range accounts {
		functions, _ := os.ReadDir(filepath.Join(l.dir, account.Name()))
		for _, function := range functions {
			dir := filepath.Join(l.dir, account.Name(), function.Name())
			entries, _ := filesOf(dir)
			kept := l.pruneFunction(now, entries, inUse)
			if len(kept) == 0 {
				_ = os.Remove(dir) // if it is empty
			}
			all = append(all, kept...)
		}
	}
	slices.SortFunc(all, func(a, b logEntry) int { return a.last.Compare(b.last) })
	l.bytes.Store(sum(l.drop(all, 0, sum(all)-l.limits.Total, inUse)))
}

func (l *logStore) pruneFunction(now time.Time, all []logEntry, inUse map[string]bool) []logEntry {
	old := 0
	for old < len(all) && now.Sub(all[old].last) > l.limits.Age {
		old++
	}
	old = max(old, len(all)-l.limits.Streams)
	tooMuch := sum(all[old:]) - l.limits.Function
	return l.drop(all, old, sum(all[:old])+max(0, tooMuch), inUse)
}

// drop removes the first n files at least, and more until so many bytes are gone.
func (l *logStore) drop(all []logEntry, n int, bytes int64, inUse map[string]bool) (kept []logEntry) {
	for i, e := range all {
		if bytes <= 0 && i >= n {
			return append(kept, all[i:]...)
		}
		if inUse[strings.TrimSuffix(e.path, olderSuffix)] {
			kept = append(kept, e)
			continue
		}
		if err := os.Remove(e.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.log.Error("an old log cannot be removed", "cause", err)
		}
		bytes -= e.size
	}
	return kept
}

func sum(all []logEntry) (n int64) {
	for _, e := range all {
		n += e.size
	}
	return n
}

// query says which lines of a function's log are wanted.
type query struct {
	account, function string
	stream            string // "" = all
	since             int64  // ms
	limit             int    // of lines; the last ones, or the first if until is given; 0 = no limit
	until             int64  // ms; 0 = no end, and lines of a moment ago may be missing
	follow            bool
}

const (
	// followEvery is how often a log that is followed is looked at.
	followEvery = 200 * time.Millisecond
	// fileTick is more than the time of a file's last write may be behind the
	// clock: the kernel sets it at its ticks, 1 to 10 ms apart (time(7), the software
	// clock).
	fileTick = time.Second
	// mostEvents bounds an answer that is not followed.
	mostEvents = 10000
	// logReads bounds who reads logs at a time, but to follow them: each may hold all
	// lines of a function, which may be 64 MiB.
	logReads = 4
	// settleWithin is how much later than this machine's the clock of who asks may
	// be, so that all up to its now can be told.
	settleWithin = 100 * time.Millisecond
)

// read gives the lines, those of one stream in their order and streams merged by
// time. It returns when there are no more, or ctx ends if it is to follow. Who does
// not follow waits for a turn, and has it until yield has returned.
func (l *logStore) read(ctx context.Context, q query, yield func([]invokewire.LogEvent) error) error {
	dir, err := l.folder(q.account, q.function)
	if err != nil {
		return err
	}
	if !q.follow {
		select {
		case l.turns <- struct{}{}:
			defer func() { <-l.turns }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if q.until > 0 {
		q.until = l.settle(ctx, dir, q.until)
	}
	marks := map[string]mark{}
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for first := true; ; first = false {
		events, err := l.collect(dir, q, marks, first)
		if err != nil {
			return err
		}
		if err := yield(events); err != nil || !q.follow {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// mark is how far a log was read, and in which file.
type mark struct {
	file os.FileInfo // nil: it was not
	at   int64
}

// has tells whether a file has nothing that was not read. What was rotated away is
// read with the file that is in its place.
func (p mark) has(e logEntry) bool {
	return p.file != nil && (strings.HasSuffix(e.path, olderSuffix) || e.size == p.at && os.SameFile(p.file, e.info))
}

// collect gives what has come since marks, by log, which it moves.
func (l *logStore) collect(dir string, q query, marks map[string]mark, first bool) ([]invokewire.LogEvent, error) {
	entries, err := filesOf(dir)
	if err != nil {
		return nil, err
	}
	limit := mostEvents
	if q.limit > 0 {
		limit = min(limit, q.limit)
	}
	var events []invokewire.LogEvent
	for _, e := range entries {
		path := strings.TrimSuffix(e.path, olderSuffix)
		name, err := url.PathUnescape(filepath.Base(path))
		if err != nil || q.stream != "" && name != q.stream || e.last.Add(fileTick).UnixMilli() < q.since || marks[path].has(e) {
			continue
		}
		read, err := readOn(path, name, q.since, marks)
		if err != nil {
			return nil, err
		}
		events = append(events, read...)
		switch {
		case len(events) <= 4*mostEvents:
		case q.until > 0:
			events = slices.Clone(firstOf(events, q.until, limit))
		default:
			events = slices.Clone(events[len(events)-mostEvents:])
		}
	}
	if q.until > 0 {
		return firstOf(events, q.until, limit), nil
	}
	slices.SortStableFunc(events, func(a, b invokewire.LogEvent) int { return cmp.Compare(a.Time, b.Time) })
	if first && len(events) > limit {
		events = events[len(events)-limit:]
	}
	return events, nil
}

// firstOf sorts lines by time and gives the first, none after until: as many as
// limit, and what else is of the last one's millisecond, so that whoever asks for
// those of later ones misses none.
func firstOf(events []invokewire.LogEvent, until int64, limit int) []invokewire.LogEvent {
	slices.SortStableFunc(events, func(a, b invokewire.LogEvent) int { return cmp.Compare(a.Time, b.Time) })
	if len(events) > limit {
		until = min(until, events[limit-1].Time)
	}
	end, _ := slices.BinarySearchFunc(events, until+1, func(e invokewire.LogEvent, ms int64) int { return cmp.Compare(e.Time, ms) })
	return events[:end]
}

// readOn reads a log from its place on, first what was rotated away since.
func readOn(path, name string, since int64, marks map[string]mark) (events []invokewire.LogEvent, err error) {
	was := marks[path]
	f, info, err := openLog(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f == nil || was.file == nil || !os.SameFile(was.file, info) || info.Size() < was.at {
		older, rotated, err := openLog(path + olderSuffix)
		if err != nil {
			return nil, err
		}
		defer older.Close()
		if older != nil && (f == nil || !os.SameFile(rotated, info)) { // else it has just become that
			if was.file == nil || !os.SameFile(was.file, rotated) {
				was.at = 0
			}
			events, was.at = readLines(older, name, was.at, since)
			marks[path] = mark{rotated, was.at}
		}
		was.at = 0
	}
	if f == nil {
		return events, nil
	}
	read, end := readLines(f, name, was.at, since)
	marks[path] = mark{info, end}
	return append(events, read...), nil
}

// openLog opens a file of a log; nil: there is none, or none any more.
func openLog(path string) (*os.File, os.FileInfo, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

// readLines reads whole lines of a file from an offset on, and gives where they
// end.
func readLines(f *os.File, name string, from, since int64) ([]invokewire.LogEvent, int64) {
	var events []invokewire.LogEvent
	in := bufio.NewReaderSize(io.NewSectionReader(f, from, 1<<62), 2*maxLine)
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return events, from // an unfinished line comes with the next read
		}
		from += int64(len(line))
		if e, ok := parseLine(line, name); ok && e.Time >= since {
			events = append(events, e)
		}
	}
}

// parseLine reads what stream.line wrote.
func parseLine(line []byte, name string) (invokewire.LogEvent, bool) {
	at, text, ok := bytes.Cut(bytes.TrimSuffix(line, []byte{'\n'}), []byte{' '})
	ms, err := strconv.ParseInt(string(at), 10, 64)
	if !ok || err != nil || ms < 0 {
		return invokewire.LogEvent{}, false
	}
	return invokewire.LogEvent{Time: ms, Stream: name, Message: string(bytes.ReplaceAll(text, []byte{'\r'}, []byte{'\n'}))}, true
}
