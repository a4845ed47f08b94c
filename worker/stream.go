package worker

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

const (
	// tailSize is how much of the log's end a caller can ask for.
	tailSize = 4 << 10
	// flushAfter is how long a line may be in memory alone: what follows a log
	// sees it then, and a killed worker loses no more.
	flushAfter = 100 * time.Millisecond
	// flushSize is how much of a log is written at once.
	flushSize = 32 << 10
	// maxLine bounds a line: thaw-init cuts longer ones as well.
	maxLine = 64 << 10
	// lineCost is what a line takes in the file beside its text: the time and two
	// characters. It counts: most lines could be empty.
	lineCost = 13 + 2
	// logRate is how many bytes a second are taken from an instance for long, kept
	// or not, and logBurst how many at once: reading what a function floods its log
	// with costs the worker, and those beside it. No quota of its own bounds that.
	logRate, logBurst = 4 << 20, 1 << 20
)

// stream is the log of one instance: a file of lines, each with the time in ms
// since 1970 before it. It is safe for concurrent use: lines are whole.
type stream struct {
	name string
	file *logFile

	// mu guards what follows.
	mu      sync.Mutex
	pending []byte // to be written
	flusher *time.Timer
	closed  bool
	tail    []byte // the last of this invoke's text, while tailing
	tailing bool
	quota   int64 // bytes that this invoke may log still
	cut     int64 // lines left out since
	cutSize int64
	limit   int64 // of quota
}

func newStream(name string, f *logFile, perInvoke int64) *stream {
	return &stream{name: name, file: f, quota: perInvoke, limit: perInvoke}
}

// begin starts an invoke's part of the log, with what the platform says of it.
func (s *stream) begin(tail bool, lines ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tailing, s.tail = tail, s.tail[:0]
	s.tellCut() // of what came between invokes
	s.quota = s.limit
	s.add(lines)
}

// platform adds lines of the platform's, which no limit cuts.
func (s *stream) platform(lines ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tellCut()
	s.add(lines)
}

// end is platform, and then gives the log's last tailSize bytes if they were
// asked for, and has all written. Otherwise that is left to flushAfter: one write
// for many short invokes.
func (s *stream) end(lines ...string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tellCut()
	s.add(lines)
	if !s.tailing {
		return nil
	}
	s.tailing = false
	s.flush()
	return s.tail[max(0, len(s.tail)-tailSize):]
}

func (s *stream) add(lines []string) {
	for _, line := range lines {
		if line != "" {
			s.line([]byte(line), time.Now())
		}
	}
}

// write adds what the function wrote: whole lines, or what is left of the last.
func (s *stream) write(text []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now() // not before: settle
	for len(text) > 0 {
		var line []byte
		line, text, _ = bytes.Cut(text, []byte{'\n'})
		if s.quota -= int64(len(line)) + lineCost; s.quota < 0 {
			s.cut++
			s.cutSize += int64(len(line)) + 1
			s.file.store.text.dropped.Add(uint64(len(line)) + 1)
			continue
		}
		s.file.store.text.kept.Add(uint64(len(line)) + 1)
		s.line(bytes.TrimSuffix(line, []byte{'\r'}), now)
	}
}

// tellCut says how much was left out.
func (s *stream) tellCut() {
	if s.cut == 0 {
		return
	}
	text := fmt.Sprintf("[thaw] %d more lines, %d bytes, were not kept: an invoke may log %d bytes", s.cut, s.cutSize, s.limit)
	s.cut, s.cutSize = 0, 0
	s.line([]byte(text), time.Now())
}

// line adds one to what is to be written. mu is held.
func (s *stream) line(text []byte, now time.Time) {
	if s.closed {
		return
	}
	text = text[:min(len(text), maxLine)]
	if s.tailing {
		if s.tail = append(append(s.tail, text...), '\n'); len(s.tail) > 4*tailSize { // cut seldom
			s.tail = append(s.tail[:0], s.tail[len(s.tail)-tailSize:]...)
		}
	}
	s.pending = strconv.AppendInt(s.pending, now.UnixMilli(), 10)
	s.pending = append(s.pending, ' ')
	for {
		head, rest, more := bytes.Cut(text, []byte{'\n'})
		s.pending = append(s.pending, head...)
		if !more {
			break
		}
		s.pending = append(s.pending, '\r') // a line of the platform's own that has several
		text = rest
	}
	s.pending = append(s.pending, '\n')
	switch {
	case len(s.pending) >= flushSize:
		s.flush()
	case s.flusher == nil:
		s.flusher = time.AfterFunc(flushAfter, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.flush()
		})
	}
}

// flush writes what is pending. mu is held.
func (s *stream) flush() {
	if s.flusher != nil {
		s.flusher.Stop()
		s.flusher = nil
	}
	if len(s.pending) == 0 || s.closed {
		return
	}
	s.file.append(s.pending)
	if s.pending = s.pending[:0]; cap(s.pending) > 2*flushSize {
		s.pending = nil
	}
}

// settle writes what is left: lines that come later have a later time.
func (s *stream) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flush()
}

// close writes what is left and lets go of the file. Lines that come later are
// lost.
func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tellCut()
	s.flush()
	s.closed = true
	s.file.close()
	s.file.store.closed(s) // not before all is written: settle
}

// logFile is a file that only grows, to its store's limit: then its older half
// goes.
type logFile struct {
	path  string
	store *logStore
	file  *os.File // nil once closed, or after an error, which is told once
	size  int64
	ended bool // the store knows that it is not written any more
}

func (f *logFile) append(text []byte) {
	if f.file == nil {
		return
	}
	if f.size+int64(len(text)) > f.store.limit(filepath.Dir(f.path))/2 && f.size > 0 {
		f.rotate()
	}
	if f.file == nil {
		return
	}
	n, err := f.file.Write(text)
	f.size += int64(n)
	f.store.grown(int64(n))
	if err != nil {
		f.fail(err)
	}
}

// rotate puts the newer half in the place of the older.
func (f *logFile) rotate() {
	older, err := os.Stat(f.path + olderSuffix)
	if err == nil {
		f.store.grown(-older.Size())
	}
	if err := os.Rename(f.path, f.path+olderSuffix); err != nil {
		f.fail(err)
		return
	}
	f.file.Close()
	f.file, f.size = nil, 0
	file, err := os.OpenFile(f.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		f.fail(err)
		return
	}
	f.file = file
}

func (f *logFile) fail(err error) {
	f.store.log.Error("a function's log is not written any more: free disk and start the function anew", "cause", err)
	f.close()
}

func (f *logFile) close() {
	if !f.ended {
		f.ended = true
		f.store.end(filepath.Dir(f.path))
	}
	if f.file != nil {
		f.file.Close()
		f.file = nil
	}
}
