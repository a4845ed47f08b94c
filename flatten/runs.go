package flatten

import (
	"io"
	"math/bits"
)

// runs lays items into runs. Small items collect in a buffer that is written
// as one piece when the run is cut; a large one goes straight to the writer.
//
//	|<- 2 MiB ->|<- 2 MiB ->|<- 9/8 of a large item ->|<- 2 MiB ->|
//	 a b c d      f g h       e e e e e e e e           i j
//
// A run's address is taken when its first item comes, so e above, between d and
// f in the tar, does not cut the run of small items around it.
type runs struct {
	w     io.WriterAt
	buf   []byte // the open run
	start int64  // its offset in bytes
	next  int64  // first byte that no run has
}

func newRuns(w io.WriterAt, start int64) *runs {
	return &runs{w: w, next: start}
}

// place makes room for n bytes, at most runSize, on a block boundary of the
// open run and gives their offset and the zeroed bytes to fill in. A run that
// is too full is written first.
func (r *runs) place(n int) (off int64, b []byte, err error) {
	size := (n + blockSize - 1) / blockSize * blockSize
	if len(r.buf)+size > runSize {
		if err := r.flush(); err != nil {
			return 0, nil, err
		}
	}
	if r.buf == nil {
		r.buf = make([]byte, 0, runSize)
	}
	if len(r.buf) == 0 {
		r.start, r.next = r.next, r.next+runSize
	}
	at := len(r.buf)
	r.buf = r.buf[:at+size]
	clear(r.buf[at:])
	return r.start + int64(at), r.buf[at : at+n], nil
}

// end cuts the run behind an item of n bytes with that hash if both say so:
// past metaMin, one byte in metaMean does.
func (r *runs) end(hash uint64, n int) error {
	if len(r.buf) < metaMin {
		return nil
	}
	// hash / 2^64 < n / metaMean
	if hi, _ := bits.Mul64(hash, metaMean); hi >= uint64(n) {
		return nil
	}
	return r.flush()
}

// split writes the first n bytes of the open run and begins another with the
// rest, which moves by so many bytes.
func (r *runs) split(n int) (moved int64, err error) {
	rest := r.buf[n:]
	r.buf = r.buf[:n]
	from := r.start + int64(n)
	if err := r.flush(); err != nil || len(rest) == 0 {
		return 0, err
	}
	r.buf = r.buf[:copy(r.buf[:cap(r.buf)], rest)]
	r.start, r.next = r.next, r.next+runSize
	return r.start - from, nil
}

// flush writes the open run.
func (r *runs) flush() error {
	if len(r.buf) == 0 {
		return nil
	}
	_, err := r.w.WriteAt(r.buf, r.start)
	r.buf = r.buf[:0]
	return err
}

// large gives the offset of an item that has its own run. Its end is told to
// took before anything else is placed.
func (r *runs) large() int64 { return r.next }

// took reserves the space of a large item of n bytes.
func (r *runs) took(n int64) {
	if n > runSize {
		n += n / 8
	}
	r.next += (n + runSize - 1) / runSize * runSize
}

// hashPath is FNV-1a over the path, with a finalizer since runs.end looks at
// the high bits first.
func hashPath(seed uint64, path string) uint64 {
	h := seed ^ 0xcbf29ce484222325
	for i := range len(path) {
		h = (h ^ uint64(path[i])) * 0x100000001b3
	}
	h ^= h >> 32
	h *= 0x9e3779b97f4a7c15 // 2^64 / golden ratio
	return h ^ h>>29
}
