package frontend

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream"

	"thaw/invokewire"
	"thaw/lambdaapi"
)

const (
	// maxStream is the longest streamed answer: Lambda's.
	maxStream = 200 << 20
	// chunkSize is what one frame carries at most.
	chunkSize = 64 << 10
	// maxDetails bounds the error in a stream's last frame.
	maxDetails = 128 << 10
	// chunkTime is for a client to take a chunk.
	chunkTime = 30 * time.Second
	// unformatted is the media type of an answer that has not got one.
	unformatted = "application/octet-stream"
)

// Error codes at a stream's end.
const (
	codeUnhandled = "Unhandled"
	codeTooLarge  = "Function.ResponseSizeTooLarge"
	codeService   = "ServiceException"
)

// chunks lends memory to streams.
type chunks struct{ pool sync.Pool }

func (c *chunks) get() *[]byte {
	if b, ok := c.pool.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, chunkSize)
	return &b
}

func (c *chunks) put(b *[]byte) { c.pool.Put(b) }

// relayed is how a streamed answer ended.
type relayed struct {
	code, details string // of an error
	tail          string // base64
	alive         bool   // the instance can have another invoke
}

// relay passes an answer on as it comes. send may fail: then the client has
// gone, and the rest is read all the same, since it is the instance's invoke
// still. Of a function's failure before it has answered, the body is the error.
func (f *Frontend) relay(a *answer, send func([]byte) error) relayed {
	mem := f.chunks.get()
	defer f.chunks.put(mem)
	failed := a.Header.Get(invokewire.HeaderFunctionError) != ""
	var details []byte
	total, gone := 0, false
	for {
		n, err := a.Read(*mem)
		b := (*mem)[:n]
		total += n
		switch {
		case failed:
			details = append(details, b[:min(n, maxDetails-min(maxDetails, len(details)))]...)
		case total <= maxStream && !gone && n > 0:
			gone = send(b) != nil
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return relayed{code: codeService, details: "The worker that ran the function ended or cannot be reached."}
		}
	}
	t := trailersOf(a)
	r := relayed{tail: t.tail, alive: true}
	switch {
	case t.failed:
		r.code, r.details = codeUnhandled, string(t.errorBody[:min(len(t.errorBody), maxDetails)])
	case failed:
		r.code, r.details = codeUnhandled, string(details)
	case total > maxStream:
		r.code, r.details = codeTooLarge, "Response payload size exceeded maximum allowed payload size (209715200 bytes)."
	}
	return r
}

// stream answers InvokeWithResponseStream.
func (f *Frontend) stream(w http.ResponseWriter, r *http.Request, inv *invocation) {
	inv.streaming = true
	a, done, err := f.run(context.WithoutCancel(r.Context()), inv) // the client may hang up: the function goes on
	if err != nil {
		lambdaapi.WriteError(w, inv.requestID, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/vnd.amazon.eventstream")
	h.Set("X-Amz-Executed-Version", inv.target.version.Number)
	carry(r.Context(), 1)
	w.WriteHeader(http.StatusOK)
	s := frames{w: w, control: http.NewResponseController(w), encoder: eventstream.NewEncoder()}
	s.flush()
	end := f.relay(a, func(b []byte) error { return s.send("PayloadChunk", unformatted, b) })
	done(end.alive)
	complete := lambdaapi.InvokeWithResponseStreamCompleteEvent{}
	if end.code != "" {
		complete.ErrorCode, complete.ErrorDetails = &end.code, &end.details
	}
	if inv.tail && end.tail != "" {
		complete.LogResult = &end.tail
	}
	body, err := json.Marshal(complete)
	if err != nil {
		panic("frontend: " + err.Error()) // it holds texts only
	}
	if s.send("InvokeComplete", "application/json", body) == nil { // else the client has gone, or is told so
		carry(r.Context(), -1)
	}
}

// frames writes an event stream.
type frames struct {
	w       io.Writer
	control *http.ResponseController
	encoder *eventstream.Encoder
}

// send writes one event, for which the client has a time.
func (s *frames) send(event, contentType string, payload []byte) error {
	var h eventstream.Headers
	h.Set(":message-type", eventstream.StringValue("event"))
	h.Set(":event-type", eventstream.StringValue(event))
	h.Set(":content-type", eventstream.StringValue(contentType))
	_ = s.control.SetWriteDeadline(time.Now().Add(chunkTime)) // servers of tests cannot
	if err := s.encoder.Encode(s.w, eventstream.Message{Headers: h, Payload: payload}); err != nil {
		return err
	}
	return s.flush()
}

func (s *frames) flush() error {
	_ = s.control.SetWriteDeadline(time.Now().Add(chunkTime))
	return s.control.Flush()
}
