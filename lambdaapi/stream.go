package lambdaapi

import (
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream"
	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream/eventstreamapi"
)

// largest is how many bytes one chunk of a stream carries: well below the 16 MiB that a
// message may have, and enough for its frame not to matter.
const largest = 128 << 10

// Stream answers InvokeWithResponseStream. Its methods are for one goroutine; an
// error is the connection's, and the stream's end.
type Stream struct {
	w       http.ResponseWriter
	encoder *eventstream.Encoder
}

// StartStream sends status and headers; out's members are headers. Chunks and
// Complete follow.
func StartStream(w http.ResponseWriter, requestID string, out *InvokeWithResponseStreamResponse) *Stream {
	h := w.Header()
	h.Set("X-Amzn-Requestid", requestID)
	h.Set("Content-Type", "application/vnd.amazon.eventstream")
	if out.ExecutedVersion != nil {
		h.Set("X-Amz-Executed-Version", *out.ExecutedVersion)
	}
	w.WriteHeader(http.StatusOK)
	s := &Stream{w: w, encoder: eventstream.NewEncoder()}
	s.flush()
	return s
}

// Write sends bytes of the function's answer, at once. It keeps none of them.
func (s *Stream) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		chunk := p[sent:min(len(p), sent+largest)]
		if err := s.send("PayloadChunk", "application/octet-stream", chunk); err != nil {
			return sent, err
		}
		sent += len(chunk)
	}
	s.flush()
	return sent, nil
}

// Complete ends the stream: with an error if the function failed, with the tail of
// its log if that was asked for.
func (s *Stream) Complete(end InvokeWithResponseStreamCompleteEvent) error {
	err := s.send("InvokeComplete", "application/json", marshal(end))
	s.flush()
	return err
}

func (s *Stream) send(event, contentType string, payload []byte) error {
	m := eventstream.Message{Payload: payload}
	m.Headers.Set(eventstreamapi.EventTypeHeader, eventstream.StringValue(event))
	m.Headers.Set(eventstreamapi.ContentTypeHeader, eventstream.StringValue(contentType))
	m.Headers.Set(eventstreamapi.MessageTypeHeader, eventstream.StringValue(eventstreamapi.EventMessageType))
	return s.encoder.Encode(s.w, m)
}

// flush has what was written sent. A writer that cannot do so at once does later;
// a broken connection shows at the next write.
func (s *Stream) flush() { _ = http.NewResponseController(s.w).Flush() }
