package lambdaapi

import "testing"

// What every invoke pays before its function hears of it.
func BenchmarkInvoke(b *testing.B) {
	r := request("POST", functions+"/f/invocations?Qualifier=1", "")
	r.Header.Set("X-Amz-Invocation-Type", "RequestResponse")
	body := []byte(`{"a":1}`)
	for b.Loop() {
		_, vars, err := Route(r)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Decode[InvocationRequest](r, vars, body); err != nil {
			b.Fatal(err)
		}
	}
}
