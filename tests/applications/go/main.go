// Sends spans with the OpenTelemetry SDK of Go and prints how many.
//
//	exporter PROTOCOL ENDPOINT COMPRESSION SPANS PAUSE_MS SERVICE
//
// PROTOCOL is grpc or http, ENDPOINT is HOST:PORT, COMPRESSION is none or gzip.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

const (
	batchSpans     = 64
	batchDelay     = 100 * time.Millisecond
	retryMax       = 90 * time.Second
	retryInitial   = 100 * time.Millisecond
	retryInterval  = time.Second
	requestTimeout = 100 * time.Second
)

func newExporter(ctx context.Context, protocol, endpoint, compression string) (*otlptrace.Exporter, error) {
	if protocol == "grpc" {
		options := []otlptracegrpc.Option{
			otlptracegrpc.WithEndpoint(endpoint),
			otlptracegrpc.WithInsecure(),
			otlptracegrpc.WithTimeout(requestTimeout),
			otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{
				Enabled: true, InitialInterval: retryInitial, MaxInterval: retryInterval, MaxElapsedTime: retryMax,
			}),
		}
		if compression == "gzip" {
			options = append(options, otlptracegrpc.WithCompressor("gzip"))
		}
		return otlptracegrpc.New(ctx, options...)
	}
	options := []otlptracehttp.Option{
		otlptracehttp.WithEndpoint(endpoint),
		otlptracehttp.WithInsecure(),
		otlptracehttp.WithTimeout(requestTimeout),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{
			Enabled: true, InitialInterval: retryInitial, MaxInterval: retryInterval, MaxElapsedTime: retryMax,
		}),
	}
	if compression == "gzip" {
		options = append(options, otlptracehttp.WithCompression(otlptracehttp.GzipCompression))
	}
	return otlptracehttp.New(ctx, options...)
}

func send(tracer trace.Tracer, spans int, pause time.Duration) {
	start := time.Unix(1_700_000_000, 0)
	for i := range spans {
		begin := start.Add(time.Duration(i) * time.Millisecond)
		_, span := tracer.Start(
			context.Background(), fmt.Sprintf("GET %d", i),
			trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(begin),
			trace.WithAttributes(
				attribute.String("db.system.name", "redis"),
				attribute.String("db.operation.name", "GET"),
				attribute.String("tenant.id", fmt.Sprintf("tenant-%d", i%3)),
				attribute.Bool("cache.hit", i%2 == 0),
				attribute.Int("cache.item.size", i),
				attribute.Float64("ratio", float64(i)/4+0.125),
				attribute.String("text", "größer — 大"),
			),
		)
		if i%10 == 0 {
			span.SetStatus(codes.Error, "no such key")
		}
		span.AddEvent("looked up", trace.WithTimestamp(begin))
		span.End(trace.WithTimestamp(begin.Add(time.Duration(i+1) * time.Millisecond)))
		time.Sleep(pause)
	}
}

func main() {
	if len(os.Args) != 7 {
		log.Fatal("expected: PROTOCOL ENDPOINT COMPRESSION SPANS PAUSE_MS SERVICE")
	}
	spans, err := strconv.Atoi(os.Args[4])
	if err != nil {
		log.Fatal(err)
	}
	pauseMs, err := strconv.Atoi(os.Args[5])
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	exporter, err := newExporter(ctx, os.Args[1], os.Args[2], os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(
			exporter, sdktrace.WithBlocking(), sdktrace.WithMaxExportBatchSize(batchSpans),
			sdktrace.WithBatchTimeout(batchDelay),
			sdktrace.WithExportTimeout(requestTimeout),
		),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", os.Args[6]), attribute.String("cloud.region", "eu-west-1"),
		)),
	)
	send(provider.Tracer("exporter"), spans, time.Duration(pauseMs)*time.Millisecond)
	if err := provider.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("{\"sent\": %d}\n", spans)
}
