// Sends spans with the OpenTelemetry SDK of JavaScript and prints how many.
//
//   node exporter.js PROTOCOL ENDPOINT COMPRESSION SPANS PAUSE_MS SERVICE
//
// PROTOCOL is grpc, proto or json, ENDPOINT is HOST:PORT, COMPRESSION is none or gzip.
"use strict";

const { SpanKind, SpanStatusCode } = require("@opentelemetry/api");
const { resourceFromAttributes } = require("@opentelemetry/resources");
const { BatchSpanProcessor, NodeTracerProvider } = require("@opentelemetry/sdk-trace-node");
const { setTimeout: sleep } = require("node:timers/promises");

const PACKAGES = { grpc: "grpc", proto: "proto", json: "http" };
const BATCH_SPANS = 64;
const START_MS = 1_700_000_000_000;
const TIMEOUT_MS = 60_000;

function exporter(protocol, endpoint, compression) {
  const { OTLPTraceExporter } = require(`@opentelemetry/exporter-trace-otlp-${PACKAGES[protocol]}`);
  const path = protocol === "grpc" ? "" : "/v1/traces";
  return new OTLPTraceExporter({ url: `http://${endpoint}${path}`, compression, timeoutMillis: TIMEOUT_MS });
}

function makeSpan(tracer, i) {
  const begin = START_MS + i;
  const span = tracer.startSpan(`GET ${i}`, {
    root: true,
    kind: SpanKind.CLIENT,
    startTime: begin,
    attributes: {
      "db.system.name": "redis",
      "db.operation.name": "GET",
      "tenant.id": `tenant-${i % 3}`,
      "cache.hit": i % 2 === 0,
      "cache.item.size": i,
      ratio: i / 4 + 0.125,
      text: "größer — 大",
    },
  });
  if (i % 10 === 0) {
    span.setStatus({ code: SpanStatusCode.ERROR, message: "no such key" });
  }
  span.addEvent("looked up", {}, begin);
  span.end(begin + i + 1);
}

async function main(protocol, endpoint, compression, spans, pauseMs, service) {
  const processor = new BatchSpanProcessor(exporter(protocol, endpoint, compression), {
    maxExportBatchSize: BATCH_SPANS,
    maxQueueSize: spans + BATCH_SPANS,
    scheduledDelayMillis: 100,
    exportTimeoutMillis: TIMEOUT_MS,
  });
  const provider = new NodeTracerProvider({
    resource: resourceFromAttributes({ "service.name": service, "cloud.region": "eu-west-1" }),
    spanProcessors: [processor],
  });
  const tracer = provider.getTracer("exporter");
  for (let i = 0; i < spans; i++) {
    makeSpan(tracer, i);
    if (pauseMs) await sleep(pauseMs);
  }
  await provider.shutdown();
  console.log(JSON.stringify({ sent: spans }));
}

const [protocol, endpoint, compression, spans, pauseMs, service] = process.argv.slice(2);
main(protocol, endpoint, compression, Number(spans), Number(pauseMs), service);
