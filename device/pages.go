package device

import "sync/atomic"

const (
	// pageSize is what file systems write, and the kernel caches, at least.
	pageSize = 4096
	// pieceWords makes a piece of the bitmaps 8 KiB for 128 MiB of device, so
	// that a few writes cost little and the table of pieces stays short.
	pieceWords = 512
	piecePages = pieceWords * 64
)

// state says where a page's bytes are.
type state int

const (
	inBase state = iota // never written
	inFile
	zeroed // discarded since
)

// pages knows the state of every page in two bitmaps, made piece by piece when
// a page of them first leaves the base. States can be asked for while others
// change them: each answer was true at some moment of the call.
//
// A page is zeroed if its bit in zero is set, else in the file if its bit in
// present is set, else in the base. Bits of present are never cleared, and are
// set before that of zero is cleared: who finds neither, looking at zero
// first, has seen a page that was in the base all the while.
type pages struct {
	pieces []atomic.Pointer[piece]
}

type piece struct {
	present, zero [pieceWords]atomic.Uint64
}

// newPages has room for n pages.
func newPages(n int64) pages {
	return pages{make([]atomic.Pointer[piece], (n+piecePages-1)/piecePages)}
}

func (t pages) state(page int64) state {
	p := t.pieces[page/piecePages].Load()
	if p == nil {
		return inBase
	}
	word, bit := page/64%pieceWords, uint64(1)<<(page%64)
	switch {
	case p.zero[word].Load()&bit != 0:
		return zeroed
	case p.present[word].Load()&bit != 0:
		return inFile
	}
	return inBase
}

// run gives the state of the page at byte off, and how many of the n bytes from
// there on share it.
func (t pages) run(off int64, n int) (state, int) {
	page, end := off/pageSize, off+int64(n)
	s := t.state(page)
	for page++; page*pageSize < end; page++ {
		if t.state(page) != s {
			return s, int(page*pageSize - off)
		}
	}
	return s, n
}

// set puts the pages from … to-1 into the file, or makes them zeroed.
func (t pages) set(from, to int64, s state) {
	for from < to {
		n := min(64-from%64, to-from)
		mask := ^uint64(0) >> (64 - n) << (from % 64)
		p, word := t.piece(from), from/64%pieceWords
		if s == zeroed {
			p.zero[word].Or(mask)
		} else {
			p.present[word].Or(mask)
			p.zero[word].And(^mask)
		}
		from += n
	}
}

// piece gives the piece of a page, and makes it if there is none.
func (t pages) piece(page int64) *piece {
	slot := &t.pieces[page/piecePages]
	if slot.Load() == nil {
		slot.CompareAndSwap(nil, new(piece)) // if another was faster, it is there
	}
	return slot.Load()
}
